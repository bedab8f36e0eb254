# SPDX-License-Identifier: Apache-2.0
"""How far a policy is from the one that sampled: ratios, weights that correct for it, masks that give up on it."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.faults import Fault
from jaxpost.losses.checks import known, same_shape

Level = Literal["token", "sequence", "sequence_token", "sequence_sum"]
LEVELS = ("token", "sequence", "sequence_token", "sequence_sum")


def log_ratios(
    log_probs: Float[Array, "b t"],
    old_log_probs: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    level: Level = "token",
    clamp: float | None = 20.0,
) -> Float[Array, "b t"]:
    """`log(pi / pi_old)` of each token or of its whole answer, in nats, clamped to +-`clamp` (None: not clamped).

    `d_t = log_probs_t - old_log_probs_t`, and by `level`:

    - `token`: `d_t` (PPO, https://arxiv.org/abs/1707.06347).
    - `sequence`: the mean of `d` over the answer's tokens, the same for all of them (GSPO,
      https://arxiv.org/abs/2507.18071; TRL's `importance_sampling_level="sequence"`).
    - `sequence_token`: the value of `sequence`, but each token has a gradient of its own, `sg(mean d) + log_probs_t -
      sg(log_probs_t)` (GSPO-token, verl's `gspo`). It differs from `sequence` where advantages differ within an answer.
    - `sequence_sum`: the sum of `d`, the log-ratio of the whole answer (RLOO, https://arxiv.org/abs/2402.14740).

    No gradient reaches `old_log_probs`, so a first step may pass `log_probs` for both. verl clamps to +-20 (10 from
    above for `gspo`), TRL not at all; where the clamp holds there is no gradient. Under a zero of the mask it is 0 at
    the level of tokens, and what stands there, NaN included, matters to no value and no gradient.
    """
    known("log_ratios", "level", level, LEVELS)
    same_shape("log_ratios", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    old_log_probs = jax.lax.stop_gradient(old_log_probs.astype(jnp.float32))
    differences = hidden(log_probs.astype(jnp.float32) - old_log_probs, mask)
    if level != "token":
        whole = jnp.sum(differences * mask, axis=1, keepdims=True)
        if level != "sequence_sum":
            whole = whole / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
        if level == "sequence_token":
            own = hidden(log_probs.astype(jnp.float32), mask)
            differences = jax.lax.stop_gradient(whole) + (own - jax.lax.stop_gradient(own))
        else:
            differences = jnp.broadcast_to(whole, differences.shape)
    return differences if clamp is None else jnp.clip(differences, -clamp, clamp)


def sampler_weights(
    log_probs: Float[Array, "b t"],
    sampler_log_probs: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    level: Literal["token", "sequence"] = "sequence",
    beyond: Literal["truncate", "mask"] = "mask",
    low: float = 0.0,
    high: float = 3.0,
) -> Float[Array, "b t"]:
    """Importance weights for a sampler whose log-probabilities are not the trainer's: `w = exp(log_probs - sampler)`.

    `log_probs` are the trainer's of the same weights that sampled. By `level`, `w` is each token's or the product over
    the answer. `beyond` the bounds it is moved to the nearer one (`truncate`: truncated importance sampling,
    https://fengyao.notion.site/off-policy-rl) or becomes 0 (`mask`: masked importance sampling). Multiply the losses of
    tokens by it; the mask that they are reduced with stays as it was. No gradient.

    TRL's `vllm_importance_sampling_mode` is `{level}_{beyond}`; its default is `sequence_mask` up to 3. Where the
    sampler's log-probability is NaN (unknown), the token counts as equal, as in TRL.
    """
    known("sampler_weights", "level", level, ("token", "sequence"))
    known("sampler_weights", "way with what lies", beyond, ("truncate", "mask"))
    same_shape("sampler_weights", log_probs=log_probs, sampler_log_probs=sampler_log_probs, mask=mask)
    differences = jax.lax.stop_gradient(log_probs.astype(jnp.float32) - sampler_log_probs.astype(jnp.float32))
    differences = hidden(jnp.where(jnp.isnan(differences), 0.0, differences), mask)
    if level == "sequence":
        differences = jnp.broadcast_to(jnp.sum(differences * mask, axis=1, keepdims=True), differences.shape)
    weights = jnp.exp(jnp.clip(differences, -80.0, 80.0))  # exp(89) is no float32
    if beyond == "truncate":
        return jnp.clip(weights, low, high)
    return jnp.where((weights < low) | (weights > high), 0.0, weights)


def off_policy_mask(
    log_probs: Float[Array, "b t"],
    sampler_log_probs: Float[Array, "b t"],
    advantages: Float[Array, "b"] | Float[Array, "b t"],
    mask: Float[Array, "b t"],
    threshold: float,
) -> Float[Array, "b t"]:
    """0 for answers that were bad and have become strange, else 1: keep where `A >= 0` or `mean_t(sampler_log_probs -
    log_probs) <= threshold` (nats a token).

    The off-policy sequence mask of DeepSeek-V3.2 (https://arxiv.org/abs/2512.02556), as TRL's
    `off_policy_mask_threshold`: multiply the losses of tokens by it. NaN of the sampler is no evidence. No gradient.
    """
    differences = jax.lax.stop_gradient(sampler_log_probs.astype(jnp.float32) - log_probs.astype(jnp.float32))
    differences = hidden(jnp.where(jnp.isnan(differences), 0.0, differences), mask)
    length = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
    near = jnp.sum(differences * mask, axis=1, keepdims=True) / length <= threshold
    return (near | (of_tokens(advantages, mask) >= 0)).astype(jnp.float32)


def top_entropy_mask(entropies: Float[Array, "b t"], mask: Float[Array, "b t"], share: float) -> Float[Array, "b t"]:
    """1 for the `share` of the masked tokens with the highest entropy, else 0: those at or above the `1 - share`
    quantile of the whole batch given, interpolated linearly (https://arxiv.org/abs/2506.01939, TRL's
    `top_entropy_quantile`). Multiply the losses of tokens by it. No gradient."""
    entropies = jax.lax.stop_gradient(entropies.astype(jnp.float32))
    inside = mask > 0
    ordered = jnp.sort(jnp.where(inside, entropies, jnp.inf).ravel())
    place = (1.0 - share) * jnp.maximum(jnp.sum(inside) - 1, 0).astype(jnp.float32)
    below = jnp.floor(place).astype(jnp.int32)
    above = jnp.ceil(place).astype(jnp.int32)
    threshold = ordered[below] + (place - below) * jnp.where(above > below, ordered[above] - ordered[below], 0.0)
    return (inside & (entropies >= threshold)).astype(jnp.float32)


def clipped(
    log_probs: Float[Array, "b t"],
    old_log_probs: Float[Array, "b t"],
    advantages: Float[Array, "b"] | Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    level: Level = "token",
) -> Float[Array, "b t"]:
    """1 where PPO's clip takes a token's gradient away, else 0; its `masked_mean` is the clip fraction.

    `(A > 0 and ratio > 1 + high) or (A < 0 and ratio < 1 - low)`: TRL's `clip_ratio/region_mean`, verl's
    `pg_clipfrac`.
    """
    ratio = jnp.exp(log_ratios(log_probs, old_log_probs, mask, level))
    advantages = of_tokens(advantages, mask)
    outside = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    return jax.lax.stop_gradient(outside.astype(jnp.float32))


def effective_sample_size(weights: Float[Array, "*s"], mask: Float[Array, "*s"]) -> Float[Array, ""]:
    """The share of samples that unequal weights leave: `(sum w)^2 / (n sum w^2)`, in (0, 1], 1 where all are equal.

    Kong 1992's estimate over the masked places, of ratios or of sampler's weights; 0 where all weights are 0.
    """
    weights = hidden(weights.astype(jnp.float32), mask)
    weights = weights / jnp.maximum(jnp.max(jnp.abs(weights)), 1e-30)  # squares of large ones overflow
    squares = jnp.sum(weights**2 * mask)
    return jnp.sum(weights * mask) ** 2 / jnp.maximum(jnp.sum(mask) * squares, 1e-30)


def hidden(x: Float[Array, "*s"], mask: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x with 0 where the mask is 0: chosen, not multiplied, so that NaN there has no value and no gradient."""
    return jnp.where(mask > 0, x, 0.0)


def of_tokens(advantages: Float[Array, "b"] | Float[Array, "b t"], mask: Float[Array, "b t"]) -> Float[Array, "b t"]:
    """Advantages of answers or of tokens as float32 constants of tokens, 0 where the mask is 0."""
    advantages = jax.lax.stop_gradient(advantages.astype(jnp.float32))
    if advantages.shape == mask.shape[:1]:
        advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
    if advantages.shape != mask.shape:
        shapes = f"{list(mask.shape[:1])} or {list(mask.shape)}, not {list(advantages.shape)}"
        raise Fault(f"advantages of answers or of tokens must be {shapes}")
    return hidden(advantages, mask)
