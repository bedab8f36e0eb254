# SPDX-License-Identifier: Apache-2.0
"""Several edits of one weight as one."""

from typing import Any

import jax
from flax import struct

from jaxpost.arrays import Array, Key
from jaxpost.delta.contract import Bound, Op, Weight, contract, dense


@struct.dataclass
class Stack:
    """The edits one over the other, the first next to the weight: `Stack((e0, e1))` on w is e1 on (e0 on w).

    So a low-rank update under a magnitude is DoRA, and a fixed update taken off under a trained one starts elsewhere
    than at zero without touching the base.
    """

    edits: tuple[Any, ...]
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @property
    def fills(self) -> bool:
        return self.edits[0].fills

    def over(self, w: Weight, key: Key | None = None) -> Weight:
        """The weight with each edit bound over it."""
        for number, edit in enumerate(self.edits):
            own = None
            if key is not None and edit.lead() is not None:
                fold = jax.random.fold_in
                own = jax.vmap(fold, (0, None))(key, number) if key.ndim else fold(key, number)
            w = Bound(w, edit, own)
        return w

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        return contract(op, x, self.over(w, key))

    def dense(self, w: Weight, dtype: Any) -> Array:
        return dense(self.over(w), dtype)

    def lead(self) -> tuple[int, ...] | None:
        return next((lead for edit in self.edits if (lead := edit.lead()) is not None), None)

    def letters(self, inner: str, outer: str) -> "Stack":
        edits = tuple(edit.letters(inner, outer) for edit in self.edits)
        return self.replace(edits=edits)  # pyright: ignore[reportAttributeAccessIssue]
