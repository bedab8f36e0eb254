# SPDX-License-Identifier: Apache-2.0
"""A factor for every output, or every input, of a weight (IA3, Liu et al. 2022, https://arxiv.org/abs/2205.05638)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.contract import Add, Op, Take, Through, Weight, contract, dense
from jaxpost.delta.method import Method
from jaxpost.delta.places import matrices
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
        assert not isinstance(op, Through), "factors are those of a weight"
        if isinstance(op, Add):  # a bias under the factors of its matrix's outputs
            return op(x, self.dense(w, jnp.float32))
        # In float32 and rounded after: 16-bit numbers near one lie too far apart for what training does to a factor.
        if (self.side == "out") == op.forward:
            y = contract(op, x, w)
            return op.scale_out(y.astype(jnp.float32), self.s).astype(y.dtype)
        if isinstance(op, Take):
            return op.scale_in(x, self.s, lambda ids: contract(op, ids, w))
        return op.scale_in(x.astype(jnp.float32), self.s, lambda wide: contract(op, wide.astype(x.dtype), w))

    def dense(self, w: Weight, dtype: Any) -> Array:
        return (dense(w, jnp.float32) * self.s).astype(dtype)

    def lead(self) -> tuple[int, ...] | None:
        return None

    def letters(self, inner: str, outer: str) -> "Scale":
        return self.replace(s=f"{inner} {outer}".strip())  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Scales(Method):
    """A factor of one for every output (or input) of the targets: `Scales(("k", "v"))(specs)` is a delta of specs."""

    targets: tuple[str, ...]
    side: Side = "out"

    def __call__(self, specs: Tree) -> dict[str, Scale]:
        chosen = matrices(specs, self.targets, "scale targets")
        return {path: Scale(ones(spec, self.side), self.side) for path, spec in chosen.items()}


def ones(spec: ParamSpec, side: Side) -> ParamSpec:
    """The spec of a number, from one on, for each of a weight's outputs or inputs: a vector, which does not decay."""
    inner, outer = spec.sizes(1), spec.sizes(2)
    axes = (*inner, *(1,) * len(outer)) if side == "in" else (*(1,) * len(inner), *outer)
    lead, *of = (" ".join(group) for group in spec.groups)
    shape, dims = (*spec.sizes(0), *axes), f"{lead} : : {' '.join(of)}"
    return replace(spec, shape=shape, dims=dims, init=constant(1.0), dtype=jnp.float32, derived=True)


@dataclass(frozen=True)
class Ia3(Method):
    """IA3: a factor for every output of the keys and values, and for every input of the way down from the MLP."""

    outputs: tuple[str, ...] = ("k", "v")
    inputs: tuple[str, ...] = ("down",)

    def __call__(self, specs: Tree) -> dict[str, Scale]:
        if not (self.outputs or self.inputs):
            raise Fault("ia3: neither outputs nor inputs name a weight; give at least one, such as k or down")
        chosen = matrices(specs, self.outputs, "ia3 outputs"), matrices(specs, self.inputs, "ia3 inputs")
        out, into = ({path: Scale(ones(spec, side), side) for path, spec in each.items()}
                     for side, each in zip(("out", "in"), chosen, strict=True))  # fmt: skip
        if both := out.keys() & into.keys():
            raise Fault(f"ia3: {min(both)!r} is among the outputs and the inputs; a weight is scaled on one side")
        return out | into
