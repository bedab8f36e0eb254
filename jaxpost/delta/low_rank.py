# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.contract import Op, Take, Weight, contract, dense
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, constant, normal


@struct.dataclass
class LowRank:
    """`w + scale * a @ b`, with a `[lead, in, r]`, b `[lead, r, out]` and scale `[lead]`.

    The activation goes through the factors, `(x @ a) * scale @ b`, beside the base; with a key, inverted dropout at
    rate `dropout` acts on the x that the factors see (not on ids, which cannot be dropped).
    """

    a: Any
    b: Any
    scale: Any
    dropout: float = struct.field(pytree_node=False, default=0.0)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=("scale",))

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        down, up = op.split()
        y = contract(op, x, w)
        if key is not None and self.dropout and not isinstance(op, Take):
            key = key if not key.ndim else key[(0,) * key.ndim]  # experts: each row of x meets one of them
            kept = jax.random.bernoulli(key, 1.0 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1.0 - self.dropout), 0.0).astype(x.dtype)
        # The scale has the lead axes that are left (experts), which stand first in the factors but not in x.
        scale = self.scale.astype(jnp.float32)
        b = self.b * scale.reshape(*scale.shape, *(1,) * (self.b.ndim - scale.ndim))
        first, second = (self.a, b) if op.forward else (b, self.a)
        return y + up(down(x, first), second).astype(y.dtype)

    def dense(self, w: Weight, dtype: Any) -> Array:
        whole = dense(w, jnp.float32)
        lead = self.scale.shape
        a = self.a.astype(jnp.float32).reshape(*lead, -1, self.a.shape[-1])
        b = self.b.astype(jnp.float32).reshape(*lead, self.a.shape[-1], -1)
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) * self.scale[..., None, None]
        return (whole + update.reshape(whole.shape)).astype(dtype)

    def lead(self) -> tuple[int, ...] | None:
        return self.scale.shape if self.dropout else None

    def letters(self, inner: str, outer: str) -> "LowRank":
        return self.replace(  # pyright: ignore[reportAttributeAccessIssue]
            a=f"{inner} r", b=f"r {outer}", scale=""
        )


MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of a block; some families have no gate."""


@dataclass(frozen=True)
class Lora:
    """LoRA on the targets: `Lora(rank=16)(specs)` is a delta of specs, with `scale = alpha / rank`, or `alpha /
    sqrt(rank)` when rank-stabilised (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).

    a starts as N(0, 1/rank^2) and b as zero, so a fresh delta changes nothing. The targets, unless given, are those of
    `MATRICES` that the model has. Raises `Fault` for others that match no weight, or one that is no map (a norm, a
    bias).
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = MATRICES
    dropout: float = 0.0
    rank_stabilised: bool = False

    def __call__(self, specs: Tree) -> dict[str, LowRank]:
        if self.rank < 1:
            raise Fault(f"lora: rank is {self.rank}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise Fault(f"lora: dropout is {self.dropout}; it must be at least 0 and below 1")
        flat = {path: spec for path, spec in trees.flatten(specs).items() if not spec.optional}
        targets = self.targets
        if targets == MATRICES:
            targets = tuple(name for name in MATRICES if any(trees.matches(path, name) for path in flat))
        return {path: self._edit(path, flat[path]) for path in trees.select(flat, targets, "lora targets")}

    def _edit(self, path: str, spec: ParamSpec) -> LowRank:
        lead, inner, outer = (" ".join(letters) for letters in spec.groups)
        if not inner or not outer:
            raise Fault(f"lora targets: {path!r} is no matrix; name weights such as q, v or down")
        factor = replace(spec, dtype=jnp.float32, derived=True)
        down, up = (*spec.sizes(0), *spec.sizes(1), self.rank), (*spec.sizes(0), self.rank, *spec.sizes(2))
        scale = self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)
        return LowRank(
            a=replace(factor, shape=down, dims=f"{lead} : {inner} : r", init=normal(1.0 / self.rank)),
            b=replace(factor, shape=up, dims=f"{lead} : r : {outer}", init=constant(0.0)),
            scale=replace(factor, shape=spec.sizes(0), dims=f"{lead} : :", init=constant(scale)),
            dropout=self.dropout,
        )
