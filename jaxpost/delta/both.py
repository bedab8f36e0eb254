# SPDX-License-Identifier: Apache-2.0
"""Two methods at once, as one delta."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax

from jaxpost import params
from jaxpost.arrays import Tree
from jaxpost.delta.adalora import AdaLora
from jaxpost.delta.adapter import Adapters
from jaxpost.delta.biases import BitFit
from jaxpost.delta.bind import Delta, spread
from jaxpost.delta.dense import Full
from jaxpost.delta.encoders import Ptuning
from jaxpost.delta.head import Head
from jaxpost.delta.lora import Lora
from jaxpost.delta.magnitude import Dora
from jaxpost.delta.method import Given, Method, Place
from jaxpost.delta.prefix import Prefix
from jaxpost.delta.prompt import Prompt
from jaxpost.delta.scale import Ia3
from jaxpost.delta.select import Select
from jaxpost.delta.vera import Vera
from jaxpost.faults import Fault

Part = AdaLora | Adapters | BitFit | Dora | Full | Head | Ia3 | Lora | Prefix | Prompt | Ptuning | Select | Vera


@dataclass(frozen=True)
class Both(Method):
    """The union of what two methods make: a prefix and a head, low-rank updates and biases. Each starts its own edits,
    and the optimisers that they ask for lie around one another.

    Raises `Fault` where both edit one place, or both reserve places in every example, for they would be the same ones.
    """

    first: Part
    second: Part

    def __call__(self, specs: Tree) -> dict[str, Any]:
        one, other = self.first(specs), self.second(specs)
        names = type(self.first).__name__, type(self.second).__name__
        if common := sorted(_places(one) & _places(other) | one.keys() & other.keys()):
            raise Fault(f"{' and '.join(names)} both edit {common[0]!r}; let one of them tune other targets")
        if self.first.virtual and self.second.virtual:
            raise Fault(f"{' and '.join(names)} both learn what stands in front of the text; take one of them")
        return {**one, **other}

    @property
    def _reserving(self) -> Method:
        return self.first if self.first.virtual else self.second

    @property
    def virtual(self) -> int:
        return self._reserving.virtual

    @property
    def place(self) -> Place:
        return self._reserving.place

    def start(self, delta: Delta, given: Given) -> Delta:
        begun: dict[str, Any] = {}
        for number, part in enumerate((self.first, self.second)):
            own = {path: delta[path] for path in part(given.specs)}
            begun |= part.start(own, replace(given, key=jax.random.fold_in(given.key, number)))
        return begun

    def optimiser(self, inner: optax.GradientTransformation, specs: Tree, steps: int) -> optax.GradientTransformation:
        within = self.first.optimiser(inner, specs, steps)
        around = self.second.optimiser(within, specs, steps)
        if type(self.first) is type(self.second) and inner is not within is not around:
            name = type(self.first).__name__
            raise Fault(f"two {name} would both change the optimiser for all that is {name}'s; let one of them do it")
        return around

    def facts(self, delta: Delta) -> Mapping[str, str]:
        return {**self.first.facts(delta), **self.second.facts(delta)}


def _places(delta: Delta) -> set[str]:
    """The paths that a delta of specs edits, those of edits that are computed among them."""
    return set(jax.eval_shape(spread, params.abstract(dict(delta))))
