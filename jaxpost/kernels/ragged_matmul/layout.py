# SPDX-License-Identifier: Apache-2.0
"""How rows are laid out before their groups' matrices meet them: once, for all the products that follow."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Int
from jaxpost.shard import platform


@struct.dataclass
class Groups:
    """Places for rows, those of a group side by side, in whole blocks of `block` places.

    source `[p]`: the row at each place, or the number of rows where there is none; place `[t]`: where each row is;
    sizes `[g]`: how many places each group has, empty ones at its end included.
    """

    source: Any
    place: Any
    sizes: Any
    block: int = struct.field(pytree_node=False, default=1)

    @property
    def of_place(self) -> Int[Array, "p"]:
        """The group of each place."""
        count = self.sizes.shape[0]
        return jnp.repeat(jnp.arange(count), self.sizes, total_repeat_length=self.source.shape[0])

    def lay(self, x: Array, copies: int = 1) -> Array:
        """Rows `[t / copies, i]`, each standing for so many, at their places; zeros where there is none."""
        return jnp.take(x, self.source // copies, axis=0, mode="fill", fill_value=0)


def grouped(group: Int[Array, "t"], count: int, block: int | None = None) -> Groups:
    """The layout for rows of these groups, of which there are `count`. By counting: a sort takes a TPU minutes to
    compile. Groups are padded to blocks of about an average group, except where a device needs no blocks."""
    rows = group.shape[0]
    block = block or (1 if platform() == "tpu" else block_rows(rows, count))
    places = rows if block == 1 else (rows // block + min(count, rows)) * block  # whole blocks, and one begun by each
    seen = jnp.cumsum(jax.nn.one_hot(group, count, dtype=jnp.int32), axis=0)
    sizes = -(-seen[-1] // block) * block
    starts = jnp.cumsum(sizes) - sizes
    place = starts[group] + jnp.take_along_axis(seen, group[:, None], axis=1)[:, 0] - 1
    source = jnp.full(places, rows, jnp.int32).at[place].set(jnp.arange(rows, dtype=jnp.int32))
    return Groups(source, place, sizes, block)


def block_rows(rows: int, count: int) -> int:
    """The largest power of two in a group's average share: about twice the rows at most are computed then, and copies
    of matrices made for three times the groups at most."""
    return 1 << max(rows // count, 1).bit_length() - 1
