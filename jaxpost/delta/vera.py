# SPDX-License-Identifier: Apache-2.0
"""Vectors around random matrices (VeRA, Kopiczko et al. 2023, https://arxiv.org/abs/2310.11454)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.low_rank import Factors, LowRank, between, down, up
from jaxpost.delta.method import Method
from jaxpost.delta.places import MATRICES, matrices
from jaxpost.faults import Fault
from jaxpost.params import Init, ParamSpec, constant


@struct.dataclass
class Vectors(Factors):
    """`w + (a * d) @ (b * s)`, with a `[lead, in, r]` and b `[lead, r, out]` never trained, d `[lead, r]` and s
    `[lead, 1, out]`."""

    a: Any
    b: Any
    d: Any
    s: Any
    dropout: float = struct.field(pytree_node=False, default=0.0)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=("a", "b"))

    def low_rank(self) -> LowRank:
        d = self.d.reshape(*self.d.shape, *(1,) * (self.b.ndim - self.d.ndim))
        return LowRank(self.a, self.b * d * self.s, jnp.ones(self.d.shape[:-1]), self.dropout)

    def letters(self, inner: str, outer: str) -> "Vectors":
        return self.replace(  # pyright: ignore[reportAttributeAccessIssue]
            a=f"{inner} r", b=f"r {outer}", d="r", s=f"r {outer}"
        )


@dataclass(frozen=True)
class Vera(Method):
    """VeRA on the targets: d starts as `d_initial`, s as zero. The random matrices follow from `seed`: those of all
    weights and layers are the first rows and columns of one pair, uniform with standard deviations of sqrt(2 / in) and
    sqrt(2 / rank). They are not trained, so not saved, but stand in memory once for every layer."""

    rank: int = 256
    d_initial: float = 0.1
    targets: tuple[str, ...] = MATRICES
    dropout: float = 0.0
    seed: int = 0

    def __call__(self, specs: Tree) -> dict[str, Vectors]:
        if self.rank < 1:
            raise Fault(f"vera: rank is {self.rank}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise Fault(f"vera: dropout is {self.dropout}; it must be at least 0 and below 1")
        if not (chosen := matrices(specs, self.targets, "vera targets")):
            raise Fault("vera: targets name no weight; give at least one, such as q")
        into, out = (max(math.prod(spec.sizes(group)) for spec in chosen.values()) for group in (1, 2))
        return {path: self._edit(spec, into, out) for path, spec in chosen.items()}

    def _edit(self, spec: ParamSpec, into: int, out: int) -> Vectors:
        a, b = _drawn((into, self.rank), 2 * self.seed), _drawn((self.rank, out), 2 * self.seed + 1)
        lead, inner, outer = (math.prod(spec.sizes(group)) for group in range(3))
        s = up(spec, 1, constant(0.0))
        return Vectors(
            a=down(spec, self.rank, _part(a, (inner, self.rank), lead)),
            b=up(spec, self.rank, _part(b, (self.rank, outer), lead)),
            d=between(spec, constant(self.d_initial), self.rank),
            s=replace(s, dims=f"{' '.join(s.groups[0])} : : r {' '.join(s.groups[2])}"),  # a vector, not a matrix
            dropout=self.dropout,
        )


def _drawn(shape: tuple[int, int], seed: int) -> Callable[[], Array]:
    bound = math.sqrt(6.0 / shape[0])
    return lambda: jax.random.uniform(jax.random.key(seed), shape, minval=-bound, maxval=bound)


def _part(whole: Callable[[], Array], cut: tuple[int, int], lead: int) -> Init:
    """The start of every layer: as many rows and columns as it has of one random matrix."""

    def init(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        part = whole()[None, : cut[0], : cut[1]].astype(dtype)
        return jnp.broadcast_to(part, (lead, *cut)).reshape(shape)

    return init
