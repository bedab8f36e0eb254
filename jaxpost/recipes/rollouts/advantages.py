# SPDX-License-Identifier: Apache-2.0
"""What answers are worth beside others: to the same prompt, or of the batch."""

from typing import Any, Literal

import jax.numpy as jnp

from jaxpost import losses
from jaxpost.arrays import Array, Batch

Advantage = Literal["group", "leave_one_out", "decoupled", "length_weighted", "reinforce++", "baseline"]


def of_rollout(config: Any, batch: Batch) -> Array:
    """Of every answer `[b]`, or of every token `[b, r]`, in one of the ways of the family."""
    objective, mask, count = config.objective, batch["mask"], config.rollout.prompts
    rewards, groups = batch["reward"], batch["group"]
    if objective.kl_in_reward:
        kl = losses.kl_estimate(batch["log_probs"], batch["reference_log_probs"], "k1") * mask
        if objective.advantage != "reinforce++":
            rewards = rewards - objective.kl_in_reward * jnp.sum(kl, axis=1)
    if objective.advantage == "leave_one_out":
        return losses.leave_one_out(rewards, groups, count=count)
    if objective.advantage == "decoupled":
        weights = jnp.asarray([source.weight for source in config.rewards], jnp.float32)
        return losses.decoupled_advantages(batch["scores"], weights, groups, count=count)
    if objective.advantage == "length_weighted":
        return losses.length_weighted_advantages(rewards, mask, groups, count=count)
    if objective.advantage == "baseline":
        return losses.reinforce_plus_plus_baseline(rewards, mask, groups, count=count)
    if objective.advantage == "reinforce++":
        kl = kl if objective.kl_in_reward else None
        scores = jnp.where(jnp.isnan(rewards), 0.0, rewards)
        return losses.reinforce_plus_plus(losses.token_rewards(scores, mask, kl, objective.kl_in_reward), mask)
    return losses.group_advantages(rewards, groups, count=count, scale=objective.scale)
