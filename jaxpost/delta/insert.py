# SPDX-License-Identifier: Apache-2.0
"""Something where the model had nothing: a prompt, a prefix, a bias, a head."""

from typing import Any

from flax import struct

from jaxpost.arrays import Array, Key
from jaxpost.delta.contract import Op, Weight


@struct.dataclass
class Insert:
    """Fills an empty slot with `value`. After binding the model finds the value in its tree as if it had always been
    there, so there is nothing left to contract (but where each example of a batch has another: `Bank`)."""

    value: Any
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @property
    def fills(self) -> bool:
        return True

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        return op(x, self.value)

    def dense(self, w: Weight, dtype: Any) -> Array:
        return self.value.astype(dtype)

    def lead(self) -> tuple[int, ...] | None:
        return None

    def letters(self, inner: str, outer: str) -> "Insert":
        return self.replace(value=f"{inner} {outer}".strip())  # pyright: ignore[reportAttributeAccessIssue]
