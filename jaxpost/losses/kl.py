# SPDX-License-Identifier: Apache-2.0
"""How far a policy is from its reference: estimates from samples, the divergence itself, and its coefficient."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.losses.checks import known, positive, same_shape

Estimator = Literal["k1", "k2", "k3", "abs"]
ESTIMATORS = ("k1", "k2", "k3", "abs")


def kl_estimate(
    log_probs: Float[Array, "*s"],
    reference_log_probs: Float[Array, "*s"],
    kind: Estimator = "k3",
    *,
    straight_through: bool = False,
    log_ratios: Float[Array, "*s"] | None = None,
    clamp: float | None = 20.0,
    limit: float | None = None,
) -> Float[Array, "*s"]:
    """Of each sampled token, an estimate of `KL(policy || reference)` in nats, from `d = log_probs -
    reference_log_probs` (Schulman 2020, http://joschu.net/blog/kl-approx.html).

    - `k1`: `d`: unbiased, of either sign. TRL's and RLOO's reward penalty.
    - `k2`: `d^2 / 2`: biased; its expected gradient is the KL's.
    - `k3`: `exp(-d) + d - 1`: unbiased, never negative. GRPO's penalty.
    - `abs`: `|d|`.

    The expected gradients of k1 and k3 are not the KL's (k1's is 0). Two ways to the right one: `straight_through`,
    the value of the kind with the gradient of k2 (verl's `k1+`, `k3+`, `abs+`); or `log_ratios` of the policy to the
    one that sampled (`ratios.log_ratios`), by whose exponent the estimate is multiplied, gradient included
    (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556; TRL's `use_bias_correction_kl`, its default).

    `d` is clamped to +-`clamp` for k3 alone, whose exponent would overflow, and the estimate to +-`limit`: verl takes
    20 and, for k3, 10; OpenRLHF 10 for the estimate of every kind; TRL neither.
    """
    known("kl_estimate", "kind", kind, ESTIMATORS)
    shapes = {"log_probs": log_probs, "reference_log_probs": reference_log_probs, "log_ratios": log_ratios}
    same_shape("kl_estimate", **shapes)
    difference = log_probs.astype(jnp.float32) - reference_log_probs.astype(jnp.float32)
    if kind == "k1":
        estimate = difference
    elif kind == "abs":
        estimate = jnp.abs(difference)
    elif kind == "k2":
        estimate = 0.5 * difference**2
    else:
        held = difference if clamp is None else jnp.clip(difference, -clamp, clamp)
        estimate = jnp.expm1(-held) + held
    if limit is not None:
        estimate = jnp.clip(estimate, -limit, limit)
    if straight_through and kind != "k2":
        square = 0.5 * difference**2
        estimate = jax.lax.stop_gradient(estimate) + (square - jax.lax.stop_gradient(square))  # the bracket is 0
    return estimate if log_ratios is None else estimate * jnp.exp(log_ratios.astype(jnp.float32))


def full_kl(logits: Float[Array, "*b v"], reference_logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """`KL(p || q) = sum_v p_v (log p_v - log q_v)` in nats, over the whole vocabulary, with p and q the softmax of the
    policy's and the reference's logits: no estimate, and its gradient is its own.

    Swap the arguments for the other direction. Words that p excludes (logits of minus infinity) have no part; where q
    excludes what p does not, it is infinite.
    """
    same_shape("full_kl", logits=logits, reference_logits=reference_logits)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    log_q = jax.nn.log_softmax(reference_logits.astype(jnp.float32), axis=-1)
    possible = logits > -jnp.inf
    # Chosen before the product: 0 times infinity has neither value nor gradient.
    difference = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=-1)


def fixed_coefficient(
    coefficient: Float[Array, ""] | float, kl: Float[Array, ""] | float, samples: int
) -> Float[Array, ""]:
    """The controller that leaves the coefficient as it is."""
    del kl, samples
    return jnp.asarray(coefficient, jnp.float32)


def adaptive_coefficient(
    coefficient: Float[Array, ""] | float,
    kl: Float[Array, ""] | float,
    samples: int,
    *,
    target: float,
    horizon: float,
    bound: float = 0.2,
) -> Float[Array, ""]:
    """The next coefficient of the KL penalty: `c (1 + clip(kl / target - 1, -bound, bound) samples / horizon)`.

    A proportional controller that holds the KL of an answer (nats) near `target` (Ziegler et al. 2019,
    https://arxiv.org/abs/1909.08593, section 2.2, bound 0.2; verl, OpenRLHF, and TRL up to 0.11). `samples` is how
    many answers the step had, `horizon` how many it takes to change the coefficient by `bound`. A KL that is not a
    number leaves it as it was.
    """
    positive("adaptive_coefficient", target=target, horizon=horizon)
    error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1.0, -bound, bound)
    return jnp.asarray(coefficient, jnp.float32) * (1.0 + jnp.where(jnp.isnan(error), 0.0, error) * samples / horizon)


def adaptive_entropy_coefficient(
    coefficient: Float[Array, ""] | float,
    entropy: Float[Array, ""] | float,
    *,
    target: float,
    step: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
) -> Float[Array, ""]:
    """The next coefficient of the entropy bonus: `step` more where the mean entropy of a token (nats) is at most
    `target`, else `step` less, kept between `low` and `high`.

    Skywork-OR1's controller (https://arxiv.org/abs/2505.22312), as in TRL, which applies the bonus only after a step
    whose entropy was at most the target.
    """
    change = jnp.where(jnp.asarray(entropy, jnp.float32) <= target, step, -step)
    return jnp.clip(jnp.asarray(coefficient, jnp.float32) + change, low, high)
