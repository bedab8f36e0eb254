# SPDX-License-Identifier: Apache-2.0
"""Losses of single answers, each called desirable or not: KTO and its kin, against a reference.

In go log-probabilities of whole answers, sums over their tokens, in nats; out comes one loss an answer, in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Bool, Float
from jaxpost.losses.checks import Scalar, positive, same_shape
from jaxpost.losses.reduce import masked_mean


def kto(
    log_probs: Float[Array, "*n"],
    reference: Float[Array, "*n"],
    desirable: Bool[Array, "*n"],
    z: Scalar,
    *,
    beta: Scalar = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, "*n"]:
    """Kahneman-Tversky optimisation: gains and losses against a point of reference z.

    With x the log-ratio of policy to reference and s = sigmoid: `w_d (1 - s(beta (x - z)))` of a desirable answer,
    `w_u (1 - s(beta (z - x)))` of another (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, as in TRL). z is
    the divergence of policy and reference, from `kto_divergence`; it belongs to the whole batch, so make it before the
    batch is split into microbatches.
    """
    same_shape("kto", log_probs=log_probs, reference=reference, desirable=desirable)
    positive("kto", beta=beta)
    gain = beta * (_log_ratios(log_probs, reference) - jax.lax.stop_gradient(z))
    weights = jnp.where(desirable, desirable_weight, undesirable_weight)
    return weights * jax.nn.sigmoid(jnp.where(desirable, -gain, gain))


def kto_divergence(
    log_probs: Float[Array, "*n"], reference: Float[Array, "*n"], mask: Float[Array, "*n"] | None = None
) -> Float[Array, ""]:
    """KTO's z: `max(0, mean(log p - log p_ref))` of answers beside prompts that are not theirs; no gradient.

    The mean is over the whole batch, of the mismatched pairs that `mask` leaves: it must not be split into
    microbatches, nor z be a mean of theirs, for the maximum is taken last. TRL rolls the answers of a device's batch
    by one and averages over devices; with a single prompt, or repeated ones, such pairs are not mismatched: mask them.
    Without any z is 0.
    """
    same_shape("kto_divergence", log_probs=log_probs, reference=reference, mask=mask)
    ratios = jax.lax.stop_gradient(_log_ratios(log_probs, reference))
    return jnp.maximum(masked_mean(ratios, jnp.ones_like(ratios) if mask is None else mask), 0.0)


def apo_zero_unpaired(
    log_probs: Float[Array, "*n"],
    reference: Float[Array, "*n"],
    desirable: Bool[Array, "*n"],
    *,
    beta: Scalar = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, "*n"]:
    """APO-zero of single answers: `w_d (1 - s(beta x))` of a desirable answer, `w_u s(beta x)` of another, x the
    log-ratio: KTO with the start as its point of reference, so nothing goes between the examples of a batch
    (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266, equation 7, taken apart as in TRL)."""
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    return kto(log_probs, reference, desirable, 0.0, beta=beta, **weights)


def bco(
    log_probs: Float[Array, "*n"],
    reference: Float[Array, "*n"],
    desirable: Bool[Array, "*n"],
    *,
    beta: Scalar = 0.1,
    shift: Scalar = 0.0,
) -> Float[Array, "*n"]:
    """Binary classifier optimisation: is an answer desirable, by its implicit reward?

    `-log s(r - shift)` of a desirable answer, `-log s(shift - r)` of another, `r = beta (log p - log p_ref)` (Jung et
    al. 2024, https://arxiv.org/abs/2404.04656). `shift` is the mean reward of all answers so far, from `running_mean`
    (TRL up to 1.13, this batch included), or 0 without. Its underlying-distribution matching is a weight for every
    undesirable answer, which callers multiply by.
    """
    same_shape("bco", log_probs=log_probs, reference=reference, desirable=desirable)
    positive("bco", beta=beta)
    reward = beta * _log_ratios(log_probs, reference) - jax.lax.stop_gradient(shift)
    return -jax.nn.log_sigmoid(jnp.where(desirable, reward, -reward))


class RunningMean(NamedTuple):
    """The mean of all that was seen so far, and how many that was."""

    mean: Float[Array, ""]
    count: Float[Array, ""]

    @classmethod
    def start(cls) -> "RunningMean":
        return cls(jnp.zeros(()), jnp.zeros(()))


def running_mean(state: RunningMean, values: Float[Array, "*n"], mask: Float[Array, "*n"] | None = None) -> RunningMean:
    """The state after a batch, of whose values the mask leaves some; no gradient. All that were ever seen count the
    same. A batch in microbatches gives one mean for each of them: update it once, with the whole batch."""
    same_shape("running_mean", values=values, mask=mask)
    values = jax.lax.stop_gradient(values.astype(jnp.float32))
    mask = jnp.ones_like(values) if mask is None else mask.astype(jnp.float32)
    count = state.count + jnp.sum(mask)
    # The mean moves by the new values' distance from it: sums of a long run would outgrow float32.
    change = masked_mean(values - state.mean, mask, jnp.maximum(count, 1.0))
    return RunningMean(state.mean + change, count)


def _log_ratios(log_probs: Array, reference: Array) -> Array:
    return log_probs.astype(jnp.float32) - reference.astype(jnp.float32)
