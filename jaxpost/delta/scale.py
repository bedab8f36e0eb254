# SPDX-License-Identifier: Apache-2.0
"""A factor for every output, or every input, of a weight (IA3, Liu et al. 2022, https://arxiv.org/abs/2205.05638)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.contract import Op, Weight, contract, dense
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, constant

Side = Literal["in", "out"]


@struct.dataclass
class Scale:
    """`w * s`, with s shaped like the weight but of size one along the axes of the other side: `[lead, in, 1]` or
    `[lead, 1, out]`. The weight is never touched: the activation before it, or the result behind it, is scaled."""

    s: Any
    side: Side = struct.field(pytree_node=False, default="out")
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        if (self.side == "out") == op.forward:
            return op.scale_out(contract(op, x, w), self.s)
        return op.scale_in(x, self.s, lambda x: contract(op, x, w))

    def dense(self, w: Weight, dtype: Any) -> Array:
        return (dense(w, jnp.float32) * self.s).astype(dtype)

    def lead(self) -> tuple[int, ...] | None:
        return None

    def letters(self, inner: str, outer: str) -> "Scale":
        return self.replace(s=f"{inner} {outer}".strip())  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Scales:
    """A factor of one for every output (or input) of the targets: `Scales(("k", "v"))(specs)` is a delta of specs."""

    targets: tuple[str, ...]
    side: Side = "out"

    def __call__(self, specs: Tree) -> dict[str, Scale]:
        flat = {path: spec for path, spec in trees.flatten(specs).items() if not spec.optional}
        return {path: self._edit(path, flat[path]) for path in trees.select(flat, self.targets, "scale targets")}

    def _edit(self, path: str, spec: ParamSpec) -> Scale:
        lead, inner, outer = spec.sizes(0), spec.sizes(1), spec.sizes(2)
        if not inner or not outer:
            raise Fault(f"scale targets: {path!r} is no matrix; name weights such as k, v or down")
        ones = (*inner, *(1,) * len(outer)) if self.side == "in" else (*(1,) * len(inner), *outer)
        factor = replace(spec, shape=(*lead, *ones), init=constant(1.0), dtype=jnp.float32, derived=True)
        return Scale(factor, self.side)
