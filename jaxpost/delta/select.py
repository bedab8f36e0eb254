# SPDX-License-Identifier: Apache-2.0
"""Tuning a part: some layers, or some of the places, of what another method tunes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.delta.adapter import Adapters
from jaxpost.delta.biases import BitFit
from jaxpost.delta.bind import Delta
from jaxpost.delta.dense import Full
from jaxpost.delta.lora import Lora
from jaxpost.delta.magnitude import Dora
from jaxpost.delta.method import Given, Method
from jaxpost.delta.places import by_layer, names
from jaxpost.delta.scale import Ia3
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec


@dataclass(frozen=True)
class Select(Method):
    """Of what `of` tunes, what has a name such as `layers/3/attn/q` that matches one of `names` and, where `layers` are
    given, belongs to one of them (-1 is the last).

    Places of which nothing is chosen are left out. Of a stack of which some layers are chosen the others keep their
    place, but neither their gradients nor any updates reach the optimiser's other side: they stay as they start, which
    for all methods here is without effect, and are not counted as trained.
    """

    of: Lora | Dora | Full | Ia3 | BitFit | Adapters = Full()
    names: tuple[str, ...] = ("*",)
    layers: tuple[int, ...] | None = None

    def __call__(self, specs: Tree) -> dict[str, Any]:
        whole, flat = self.of(specs), trees.flatten(specs)
        places = {path: flat[path] for path in whole}
        by_layer(places, dict.fromkeys(self.names, True), False, "select.names")
        depth = 1 + max((number for spec in flat.values() for number in spec.layers), default=-1)
        if odd := [number for number in self.layers or () if not -depth <= number < depth]:
            raise Fault(f"select.layers: the model has {depth} layers, so none has the number {odd[0]}")
        chosen = {path: self._chosen(path, spec, depth) for path, spec in places.items()}
        made = {path: _marked(edit, chosen[path]) for path, edit in whole.items() if any(chosen[path])}
        if not made:
            raise Fault(f"select: nothing that {type(self.of).__name__} tunes has such a name in such a layer")
        return made

    def _chosen(self, path: str, spec: ParamSpec, depth: int) -> tuple[bool, ...]:
        """Of each layer of a parameter, or of one outside of all, whether it is chosen."""
        named = [any(trees.matches(name, pattern) for pattern in self.names) for name in names(path, spec)]
        if self.layers is None:
            return tuple(named)
        wanted = {number % depth for number in self.layers}
        return tuple(name and number in wanted for name, number in zip(named, spec.layers, strict=False))

    @property
    def virtual(self) -> int:
        return self.of.virtual

    def start(self, delta: Delta, given: Given) -> Delta:
        return self.of.start(delta, given)

    def facts(self, delta: Delta) -> Mapping[str, str]:
        return self.of.facts(delta)

    def optimiser(self, inner: optax.GradientTransformation, specs: Tree, steps: int) -> optax.GradientTransformation:
        shares = jax.tree.map(_share, specs)
        part = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, shares))
        # In front, so that what is left out weighs nothing in the gradients' norm, and behind, so that nothing decays.
        return optax.chain(part, self.of.optimiser(inner, specs, steps), part)


def _marked(edit: Any, chosen: tuple[bool, ...]) -> Any:
    """The edit with all numbers of the layers that are not chosen said to be idle."""

    def mark(spec: ParamSpec) -> ParamSpec:
        if all(chosen):
            return spec
        size, idle = _size(spec), spec.idle or (0,) * len(chosen)
        return replace(spec, idle=tuple(old if kept else size for old, kept in zip(idle, chosen, strict=True)))

    return jax.tree.map(mark, edit)


def _share(spec: ParamSpec) -> Any:
    """One for the layers that are trained, zero for those that are idle altogether."""
    if _size(spec) not in spec.idle:
        return 1.0
    trained = np.array([number < _size(spec) for number in spec.idle], np.float32)
    return trained.reshape(-1, *(1,) * (len(spec.shape) - 1))


def _size(spec: ParamSpec) -> int:
    """How many numbers there are for each entry of the first axis."""
    return math.prod(spec.shape[1:])
