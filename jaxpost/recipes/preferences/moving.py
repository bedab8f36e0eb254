# SPDX-License-Identifier: Apache-2.0
"""A reference that follows the policy (TR-DPO: Gorbatovski et al. 2024, https://arxiv.org/abs/2404.09656)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.train.state import State
from jaxpost.train.step import Step


@dataclass(frozen=True)
class Moving:
    """After every so many steps the reference becomes `share` policy and the rest itself; a share of 1 puts the policy
    in its place. What is mixed are the numbers of the delta: of full tuning these are the weights themselves; the mean
    of two low-rank updates is near the update of their mean factors while both are near, and exact at a share of 1."""

    every: int = 512
    share: float = 0.6


def copied(trainable: Tree) -> Tree:
    """The reference as it starts: the policy's delta, in arrays of its own."""
    return jax.tree.map(jnp.copy, trainable)


def following(step: Step, moving: Moving) -> Step:
    """The step, and behind it the reference in the state's `extra`, drawn towards the policy when it is time."""

    def act(state: State, frozen: Tree, batch: Batch, key: Key) -> tuple[State, Metrics]:
        after, metrics = step(state, frozen, batch, key)
        due = after.step % moving.every == 0

        def drawn(reference: Array, policy: Array) -> Any:
            mixed = (1.0 - moving.share) * reference + moving.share * policy
            return jnp.where(due, mixed.astype(reference.dtype), reference)

        extra = jax.tree.map(drawn, state.extra, after.trainable)
        return State(after.step, after.trainable, after.opt_state, extra), metrics

    return act
