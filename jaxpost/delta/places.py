# SPDX-License-Identifier: Apache-2.0
"""Which weights a method tunes, and what it says of each of their layers."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.faults import Fault, nearest
from jaxpost.params import ParamSpec

T = TypeVar("T")

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of a block; some families have no gate."""


def matrices(specs: Tree, targets: tuple[str, ...], where: str) -> dict[str, ParamSpec]:
    """The weights that the targets name; `MATRICES` are those of them that the model has. Raises `Fault` for others
    that match nothing, or something that is no map from in to out axes (a norm, a bias)."""
    flat = {path: spec for path, spec in trees.flatten(specs).items() if not spec.optional}
    if targets == MATRICES:
        targets = tuple(name for name in MATRICES if any(trees.matches(path, name) for path in flat))
    chosen = {path: flat[path] for path in trees.select(flat, targets, where)}
    for path, spec in chosen.items():
        if not all(spec.groups[1:]):
            raise Fault(f"{where}: {path!r} is no matrix; name weights such as q, v or down")
    return chosen


def names(path: str, spec: ParamSpec) -> tuple[str, ...]:
    """What a parameter is called in each of its layers: `layers/attn/q` is `layers/0/attn/q`, `layers/1/attn/q`, ...
    Outside of the layers, its path."""
    inside = re.sub(r"^layers/(tail/)?(\d+/)?", "", path)
    return tuple(f"layers/{number}/{inside}" for number in spec.layers) or (path,)


def by_layer(
    specs: Mapping[str, ParamSpec], patterns: Mapping[str, T], default: T, where: str
) -> dict[str, tuple[T, ...]]:
    """Of each parameter, each layer's value: that of the first pattern which its name matches, or the default. A
    pattern that matches none is a fault."""
    every = {path: names(path, spec) for path, spec in specs.items()}
    known = [name for found in every.values() for name in found]
    for pattern in patterns:
        if not any(trees.matches(name, pattern) for name in known):
            raise Fault(f"{where}: nothing that is tuned matches {pattern!r}; {nearest(pattern, known)}")

    def value(name: str) -> T:
        return next((value for pattern, value in patterns.items() if trees.matches(name, pattern)), default)

    return {path: tuple(value(name) for name in found) for path, found in every.items()}


def over_lead(values: tuple[Any, ...], spec: ParamSpec) -> np.ndarray:
    """One value a layer as an array of the shape of the lead axes: all experts of a layer have its value."""
    lead = spec.sizes(0)
    if spec.groups[0][:1] != ("l",):
        return np.full(lead, values[0])
    if len(values) == 1:  # a spec that says nothing of its layers
        values = values * lead[0]
    return np.broadcast_to(np.asarray(values).reshape(-1, *(1,) * (len(lead) - 1)), lead)
