# SPDX-License-Identifier: Apache-2.0
"""Several deltas over one base in one run: a policy, and a critic that shares nothing with it but the base."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax

from jaxpost.arrays import Tree
from jaxpost.delta.bind import Delta
from jaxpost.delta.both import Both, Part
from jaxpost.delta.head import Head
from jaxpost.delta.lora import Lora
from jaxpost.delta.method import Given, Method, Place

CRITIC = "critic:"


def role(delta: Delta, prefix: str = "") -> dict[str, Any]:
    """The entries of one role, under their paths: those of the critic (`CRITIC`), or the policy's own."""
    if prefix:
        return {path.removeprefix(prefix): edit for path, edit in delta.items() if path.startswith(prefix)}
    return {path: edit for path, edit in delta.items() if ":" not in path}


@dataclass(frozen=True)
class ActorCritic(Method):
    """A delta for the policy and another for its critic, which has a head of one class. `role` tells them apart; what
    a run leaves behind is the policy's. Where both are to share one delta, give that a head instead:
    `Both(Lora(), Head(1))`."""

    actor: Part = Lora()
    critic: Both = Both(Lora(), Head(1))

    def __call__(self, specs: Tree) -> dict[str, Any]:
        return {**self.actor(specs), **{f"{CRITIC}{path}": edit for path, edit in self.critic(specs).items()}}

    @property
    def virtual(self) -> int:
        return self.actor.virtual

    @property
    def place(self) -> Place:
        return self.actor.place

    def start(self, delta: Delta, given: Given) -> Delta:
        begun = dict(self.actor.start(role(delta), given))
        other = replace(given, key=jax.random.fold_in(given.key, 1))
        return begun | {f"{CRITIC}{path}": edit for path, edit in self.critic.start(role(delta, CRITIC), other).items()}

    def optimiser(self, inner: optax.GradientTransformation, specs: Tree, steps: int) -> optax.GradientTransformation:
        return self.critic.optimiser(self.actor.optimiser(inner, specs, steps), specs, steps)

    def facts(self, delta: Delta) -> Mapping[str, str]:
        return self.actor.facts(role(delta))
