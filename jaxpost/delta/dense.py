# SPDX-License-Identifier: Apache-2.0
"""A change of every number of a weight: full tuning, the difference of two models, a bias that is tuned."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.contract import Add, Bound, Op, Take, Weight, contract, dense, letters
from jaxpost.delta.method import Method
from jaxpost.params import constant


@struct.dataclass
class Dense:
    """`w + dw`. The sum is formed in float32 and rounded once to the activation's dtype, so a float32 `dw` over a
    16-bit base trains like a float32 master copy."""

    dw: Any
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        if isinstance(op, Take):  # a table is never added up for the sake of a few of its rows
            rows = Take(jnp.float32)
            total = contract(rows, x, w) + contract(rows, x, self.dw)
            return total.astype(op.dtype or total.dtype)
        if not _summable(w):
            y = contract(op, x, w)
            return contract(op, y, self.dw) if isinstance(op, Add) else y + contract(op, x, self.dw)
        # Checkpointed: the sum is as large as the weight, and cheap to form again.
        return jax.checkpoint(lambda x, w, dw: op(x, _sum(w, dw, x.dtype)), prevent_cse=False)(x, w, self.dw)

    def dense(self, w: Weight, dtype: Any) -> Array:
        return _sum(w, self.dw, dtype)

    def lead(self) -> tuple[int, ...] | None:
        return None

    def letters(self, inner: str, outer: str) -> "Dense":
        return self.replace(dw=letters(self.dw, inner, outer))  # pyright: ignore[reportAttributeAccessIssue]


def _sum(w: Weight, dw: Weight, dtype: Any) -> Array:
    return (dense(w, jnp.float32) + dense(dw, jnp.float32)).astype(dtype)


def _summable(w: Weight) -> bool:
    """Whether `w` is at hand as numbers: stacked dense edits are summed before one contraction, while an edit with a
    faster way of its own keeps it."""
    return w is not None and (not isinstance(w, Bound) or (isinstance(w.edit, Dense) and _summable(w.w)))


def formed(w: Weight, dtype: Any) -> Weight:
    """A weight under dense edits summed up once, for a use that contracts it many times; any other weight as it is."""
    return dense(w, dtype) if isinstance(w, Bound) and isinstance(w.edit, Dense) and _summable(w) else w


@dataclass(frozen=True)
class Full(Method):
    """Full tuning of the targets as a delta: `Full()(specs)` has one zero for every number of the base, in float32.

    The base keeps its own, usually 16-bit, type and stays intact: it is still the reference model afterwards.
    """

    targets: tuple[str, ...] = ("*",)

    def __call__(self, specs: Tree) -> dict[str, Dense]:
        flat = {path: spec for path, spec in trees.flatten(specs).items() if not spec.optional}
        chosen = trees.select(flat, self.targets, "targets of full tuning")
        return {path: Dense(replace(flat[path], init=constant(0.0), dtype=jnp.float32)) for path in chosen}
