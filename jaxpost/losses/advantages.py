# SPDX-License-Identifier: Apache-2.0
"""Advantages of whole answers from the rewards of others: to the same prompt, or of the batch.

`rewards [b]`, `groups int32[b]`: the number of the prompt that an answer is to, below `count` (by default b). Rows may
stand in any order, and groups may differ in size. A reward that is NaN ("does not apply", "could not be scored") is as
if the answer were not there: it has no part in any mean, and its advantage is 0; so is a row whose `mask [b]` is 0. All
are of the whole batch: compute them before it is cut. No gradients: advantages are constants. (ReMax,
https://arxiv.org/abs/2310.10505, needs no function: its advantage is the reward less that of the greedy answer.)
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.losses.checks import known, same_shape
from jaxpost.losses.reduce import whiten
from jaxpost.losses.returns import monte_carlo

Scale = Literal["group", "batch", "none"]
SCALES = ("group", "batch", "none")
Lone = Literal["zero", "keep"]


def group_advantages(
    rewards: Float[Array, "b"],
    groups: Int[Array, "b"],
    *,
    count: int | None = None,
    mask: Float[Array, "b"] | None = None,
    scale: Scale = "group",
    eps: float = 1e-4,
    lone: Lone = "zero",
) -> Float[Array, "b"]:
    """GRPO's advantage: `(R - mean of its group) / (std + eps)` (https://arxiv.org/abs/2402.03300).

    The standard deviation has N - 1 below, and is that of the group, of the batch's rewards (`batch`,
    https://arxiv.org/abs/2508.08221) or 1 without eps (`none`: Dr. GRPO, https://arxiv.org/abs/2503.20783). A group
    whose rewards are all equal gets exactly 0.

    TRL adds 1e-4 to the standard deviation, verl 1e-6. An answer alone in its group has nothing to be compared with:
    TRL gives 0 (`zero`), verl its reward as if mean 0 and deviation 1 were known (`keep`).
    """
    known("group_advantages", "scale", scale, SCALES)
    same_shape("group_advantages", rewards=rewards, groups=groups)
    rewards, present = _present(rewards, mask)
    size, mean, deviation = _moments(rewards, present, groups, count)
    advantages = jnp.where(_differ(rewards, present, groups, count), rewards - mean, 0.0)
    if scale == "group":
        advantages = advantages / _nonzero(deviation + eps)
    elif scale == "batch":
        advantages = advantages / _nonzero(_batch_moments(rewards, present)[1] + eps)
    if lone == "keep":
        advantages = jnp.where(size == 1, rewards if scale == "none" else rewards / (1.0 + eps), advantages)
    return jnp.where(present, advantages, 0.0)


def leave_one_out(
    rewards: Float[Array, "b"],
    groups: Int[Array, "b"],
    *,
    count: int | None = None,
    mask: Float[Array, "b"] | None = None,
    lone: Lone = "zero",
) -> Float[Array, "b"]:
    """RLOO's advantage: `R - mean of the others in its group` (https://arxiv.org/abs/2402.14740).

    An answer alone in its group: TRL gives 0 (`zero`), verl its reward (`keep`).
    """
    rewards, present = _present(rewards, mask)
    size, mean, _ = _moments(rewards, present, groups, count)
    advantages = (rewards - mean) * size / jnp.maximum(size - 1.0, 1.0)
    advantages = jnp.where(_differ(rewards, present, groups, count), advantages, 0.0)
    if lone == "keep":
        advantages = jnp.where(size == 1, rewards, advantages)
    return jnp.where(present, advantages, 0.0)


def combined_rewards(rewards: Float[Array, "b k"], weights: Float[Array, "k"]) -> Float[Array, "b"]:
    """The weighted sum of several rewards. One that is NaN does not apply and counts as 0; an answer to which none
    applies is NaN, which the advantages leave out (TRL's `sum_then_normalize`, before normalising)."""
    rewards = rewards.astype(jnp.float32)
    known = ~jnp.isnan(rewards)
    total = jnp.sum(jnp.where(known, rewards, 0.0) * weights[None, :], axis=1)
    return jax.lax.stop_gradient(jnp.where(jnp.any(known, axis=1), total, jnp.nan))


def decoupled_advantages(
    rewards: Float[Array, "b k"],
    weights: Float[Array, "k"],
    groups: Int[Array, "b"],
    *,
    count: int | None = None,
    mask: Float[Array, "b"] | None = None,
    eps: float = 1e-4,
    lone: Lone = "zero",
    normalise: bool = True,
) -> Float[Array, "b"]:
    """GDPO's advantage: each of k rewards normalised within its group, their weighted sum normalised over the batch
    (https://arxiv.org/abs/2601.05242), so that a reward of large variance does not drown the others.

    TRL's `normalize_then_sum`: `(x - mean) / (std + eps)` over the answers that some reward applies to. verl whitens
    over tokens instead: take `normalise=False`, `eps=1e-6` and `whiten` the tokens' advantages.
    """
    rewards = rewards.astype(jnp.float32)
    each = [
        group_advantages(rewards[:, k], groups, count=count, mask=mask, eps=eps, lone=lone)
        for k in range(rewards.shape[1])
    ]
    total = jnp.sum(jnp.stack(each, axis=1) * weights[None, :], axis=1)
    total, present = _present(jnp.where(jnp.all(jnp.isnan(rewards), axis=1), jnp.nan, total), mask)
    if normalise:
        mean, deviation = _batch_moments(total, present)
        total = (total - mean) / _nonzero(deviation + eps)
    return jnp.where(present, total, 0.0)


def length_weighted_advantages(
    rewards: Float[Array, "b"],
    mask: Float[Array, "b t"],
    groups: Int[Array, "b"],
    *,
    count: int | None = None,
) -> Float[Array, "b"]:
    """OPO's advantage: `R - sum(length R) / sum(length)` over the group: the baseline of least variance if gradients
    grow with length (https://arxiv.org/abs/2505.23585; verl's `opo`, but an answer alone in its group gets 0)."""
    rewards, present = _present(rewards, None)
    lengths = jnp.where(present, jnp.sum(mask.astype(jnp.float32), axis=1), 0.0)
    total = _grouped(lengths, groups, count)
    baseline = _grouped(lengths * rewards, groups, count) / jnp.where(total == 0, 1.0, total)
    differ = _differ(rewards, present, groups, count)
    return jnp.where(present & differ, rewards - baseline, 0.0)


def reinforce_plus_plus(
    rewards: Float[Array, "b t"], mask: Float[Array, "b t"], *, gamma: float = 1.0
) -> Float[Array, "b t"]:
    """REINFORCE++'s advantage of tokens: Monte Carlo returns, whitened over the whole batch
    (https://arxiv.org/abs/2501.03262; verl's `reinforce_plus_plus`). `rewards` are those of tokens."""
    return whiten(monte_carlo(rewards, mask, gamma=gamma), mask)


def reinforce_plus_plus_baseline(
    rewards: Float[Array, "b"],
    mask: Float[Array, "b t"],
    groups: Int[Array, "b"],
    *,
    count: int | None = None,
    lone: Lone = "zero",
) -> Float[Array, "b t"]:
    """REINFORCE++'s form with a baseline: rewards less their group's mean, on every token, whitened over the batch's
    tokens (https://arxiv.org/abs/2501.03262; verl's `reinforce_plus_plus_baseline`, with `lone="keep"`)."""
    centred = group_advantages(rewards, groups, count=count, scale="none", lone=lone)
    present = mask * (~jnp.isnan(rewards)).astype(jnp.float32)[:, None]
    return whiten(jnp.broadcast_to(centred[:, None], mask.shape), present)


def varied(
    rewards: Float[Array, "b"],
    groups: Int[Array, "b"],
    *,
    count: int | None = None,
    mask: Float[Array, "b"] | None = None,
) -> Float[Array, "b"]:
    """1 for answers whose group's rewards differ, else 0: the others teach nothing and may be filtered (DAPO's dynamic
    sampling, https://arxiv.org/abs/2503.14476)."""
    rewards, present = _present(rewards, mask)
    return (present & _differ(rewards, present, groups, count)).astype(jnp.float32)


def _present(rewards: Array, mask: Array | None) -> tuple[Array, Array]:
    """Float32 constants with 0 for what is left out, and which are not."""
    rewards = jax.lax.stop_gradient(rewards.astype(jnp.float32))
    present = ~jnp.isnan(rewards)
    if mask is not None:
        present = present & (mask > 0)
    return jnp.where(present, rewards, 0.0), present


def _grouped(x: Array, groups: Array, count: int | None) -> Array:
    """The sum over its group, at each member."""
    return jax.ops.segment_sum(x, groups, groups.shape[0] if count is None else count)[groups]


def _moments(rewards: Array, present: Array, groups: Array, count: int | None) -> tuple[Array, Array, Array]:
    """Of its group, at each member: size, mean, and standard deviation with N - 1."""
    size = _grouped(present.astype(jnp.float32), groups, count)
    mean = _grouped(rewards, groups, count) / jnp.maximum(size, 1.0)
    squares = _grouped(jnp.where(present, rewards - mean, 0.0) ** 2, groups, count)
    return size, mean, jnp.sqrt(squares / jnp.maximum(size - 1.0, 1.0))


def _batch_moments(x: Array, present: Array) -> tuple[Array, Array]:
    size = jnp.sum(present.astype(jnp.float32))
    mean = jnp.sum(x) / jnp.maximum(size, 1.0)
    squares = jnp.sum(jnp.where(present, x - mean, 0.0) ** 2)
    return mean, jnp.sqrt(squares / jnp.maximum(size - 1.0, 1.0))


def _nonzero(deviation: Array) -> Array:
    return jnp.where(deviation == 0, 1.0, deviation)


def _differ(rewards: Array, present: Array, groups: Array, count: int | None) -> Array:
    """Whether the group's rewards differ. Asked of extremes, for a rounded mean makes equal rewards seem unequal, and
    dividing by their deviation then makes advantages of nothing."""
    count = groups.shape[0] if count is None else count
    highest = jax.ops.segment_max(jnp.where(present, rewards, -jnp.inf), groups, count)
    lowest = jax.ops.segment_min(jnp.where(present, rewards, jnp.inf), groups, count)
    return (highest > lowest)[groups]
