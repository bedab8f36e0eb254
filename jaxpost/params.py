# SPDX-License-Identifier: Apache-2.0
"""One record per parameter, from which everything else about it is derived.

A spec tree has a `ParamSpec` where a parameter tree has an array. Abstract trees, initial values, shardings and
counts are maps over it, and a delta's specs are made from the specs of the weights that it edits.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Key, Tree
from jaxpost.trees import path_of

Init = Callable[[Key, tuple[int, ...], Any], Array]


def normal(std: float) -> Init:
    return lambda key, shape, dtype: (std * jax.random.normal(key, shape)).astype(dtype)


def constant(value: float) -> Init:
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


@dataclass(frozen=True)
class ParamSpec:
    """Shape, axes, type and start of one parameter.

    `dims` names the axes as `lead : in : out`, one letter per logical axis, the letters of the einsums that use the
    weight: `l : d : n h` is stacked over layers and maps d to heads. Lead axes are stripped by the layer scan; in axes
    are contracted with the activation; out axes remain. An `optional` parameter is a slot, empty (`None`) until an edit
    fills it. A `derived` one takes its axes from another parameter's: a mesh axis that does not divide it is dropped
    there, where a base weight would be refused. `layers` are the numbers of the layers that it belongs to: those
    stacked on axis l in their order, the one of a block that is not stacked, none outside of all blocks. `idle` is how
    many numbers of each layer (of each entry of its first axis) are never trained though others are: the padding of
    unequal ranks, layers left out.
    """

    shape: tuple[int, ...]
    dims: str
    init: Init
    dtype: Any = jnp.float32
    optional: bool = False
    derived: bool = False
    layers: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dims.count(":") != 2 or len(self.letters) != len(self.shape):
            raise ValueError(f"dims {self.dims!r} do not name the axes of shape {self.shape} as 'lead : in : out'")

    @property
    def groups(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """The letters of the lead, in and out axes."""
        lead, inner, outer = (tuple(group.split()) for group in self.dims.split(":"))
        return lead, inner, outer

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(letter for group in self.groups for letter in group)

    def sizes(self, group: int) -> tuple[int, ...]:
        """The shape of one group of axes: 0 lead, 1 in, 2 out."""
        before = sum(len(letters) for letters in self.groups[:group])
        return self.shape[before : before + len(self.groups[group])]


def filled(specs: Tree) -> Tree:
    """The spec tree of a model as it is initialised: optional slots empty."""
    return jax.tree.map(lambda spec: None if spec.optional else spec, specs)


def abstract(specs: Tree) -> Tree:
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), filled(specs))


def init(specs: Tree, key: Key) -> Tree:
    """Initial values. Each depends on the key and its own path only, so adding a parameter changes no other."""

    def leaf(key_path: tuple[Any, ...], spec: ParamSpec) -> Array:
        own = jax.random.fold_in(key, zlib.crc32(path_of(key_path).encode()))
        return spec.init(own, spec.shape, spec.dtype)

    return jax.tree_util.tree_map_with_path(leaf, filled(specs))


def count(specs: Tree) -> int:
    """How many numbers a model (or the trainable half of a delta) has, empty slots and idle ones left out."""
    return sum(math.prod(spec.shape) - sum(spec.idle) for spec in jax.tree.leaves(filled(specs)))
