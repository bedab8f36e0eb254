# SPDX-License-Identifier: Apache-2.0
"""Numbers of whole answers beside their log-probabilities: what losses weigh them by, and what is reported of them."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.losses.checks import Lengths, Scalar, same_shape, within


def length_weights(
    mask: Float[Array, "b s"], segments: Int[Array, "b s"], shared: Float[Array, "b n"], *, alpha: float
) -> Float[Array, "b s"]:
    """LD-DPO's weight of every token: 1 within the length that both answers of a pair have, `alpha` beyond it.

    Multiply by per-token log-probabilities, of policy and reference alike, before they are added up (Liu et al. 2024,
    https://arxiv.org/abs/2409.06411): alpha 1 changes nothing, 0 cuts the longer answer off. `mask` is 1 at answers'
    tokens, `segments` counts the answers of a row from 1 (all ones where a row is one answer), `shared[:, i]` is the
    lesser length of the pair to which segment i + 1 belongs. Faults: an alpha outside of 0 to 1.
    """
    same_shape("length_weights", mask=mask, segments=segments)
    within("length_weights", "alpha", alpha, 0.0, 1.0)

    def row(mask: Array, segments: Array, shared: Array) -> Array:
        there = mask * (segments > 0)
        before = jnp.cumsum(there) - there
        start = jax.ops.segment_min(before, segments, shared.shape[0] + 1)[segments]
        own = shared[jnp.maximum(segments - 1, 0)]
        return there * jnp.where(before - start < own, 1.0, alpha)

    return jax.vmap(row)(mask.astype(jnp.float32), segments, shared.astype(jnp.float32))


def wpo_weights(log_probs: Float[Array, "*n"], log_squares: Float[Array, "*n"], lengths: Lengths) -> Float[Array, "*n"]:
    """WPO's weight of an answer: how likely the policy would have drawn it itself; no gradient goes through.

    `exp((log_probs - log_squares) / lengths)` of sums over an answer's tokens, of their log-probabilities and of
    `log sum_v p_v^2` (`log_sum_squares`), which aligns sharp and flat places (Zhou et al. 2024,
    https://arxiv.org/abs/2406.11827, equation 2, as in TRL). A pair's loss is multiplied by both answers' weights; not
    for aot, where losses have no pair.
    """
    same_shape("wpo_weights", log_probs=log_probs, log_squares=log_squares, lengths=lengths)
    difference = log_probs.astype(jnp.float32) - log_squares.astype(jnp.float32)
    return jnp.exp(jax.lax.stop_gradient(difference) / jnp.maximum(lengths.astype(jnp.float32), 1.0))


def implicit_rewards(
    log_probs: Float[Array, "*n"], reference: Float[Array, "*n"], *, beta: Scalar
) -> Float[Array, "*n"]:
    """The reward for which the policy would be optimal, up to a constant of the prompt: `beta (log p - log p_ref)`, in
    nats (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 5)."""
    return beta * (log_probs.astype(jnp.float32) - reference.astype(jnp.float32))


def pair_margins(chosen: Float[Array, "*n"], rejected: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """By how much the chosen answer's reward, implicit or of a reward model, is the higher one."""
    same_shape("pair_margins", chosen=chosen, rejected=rejected)
    return chosen.astype(jnp.float32) - rejected.astype(jnp.float32)


def pair_accuracies(
    chosen: Float[Array, "*n"], rejected: Float[Array, "*n"], *, tie: float = 0.0
) -> Float[Array, "*n"]:
    """1 where the chosen answer has the higher reward, `tie` where both have the same: 0 as in TRL, 0.5 for chance."""
    margins = pair_margins(chosen, rejected)
    return jnp.where(margins == 0, tie, (margins > 0).astype(jnp.float32))
