# SPDX-License-Identifier: Apache-2.0
"""Where a cache's entries lie: rings of places, and stacks of rings that are written together."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost.arrays import Array, Int
from jaxpost.kernels.decode_attention import KV, Cached, Entries, empty, stored
from jaxpost.models.architecture import blocks
from jaxpost.models.decoder import Decoder, Kept
from jaxpost.shard import constrain

Stacks = Mapping[str, Entries]
"""By name the entries `[l, b, k, t, h]` of layers, each with a ring of t places a row."""


@dataclass(frozen=True)
class Form:
    """How a cache is laid out: what its entries are stored as; and whether layers whose rings are of one length share a
    stack, however their weights are stacked, or each has one of its own.

    With a window a ring has as many places as it reaches; else there is one for every position.
    """

    kv: KV = "model"
    together: bool = True

    def stack_of(self, config: Decoder, number: int) -> str:
        """In which stack a layer's entries are."""
        window = config.layer(number).window
        return str(number) if not self.together else "all" if window is None else f"last {window}"

    def layers(self, config: Decoder) -> dict[str, tuple[int, ...]]:
        """Which layers are in each stack, in order."""
        found: dict[str, tuple[int, ...]] = {}
        for number in range(config.layers):
            name = self.stack_of(config, number)
            found[name] = (*found.get(name, ()), number)
        return found

    def nothing(self, config: Decoder, rows: int, size: int) -> dict[str, Entries]:
        """Empty rings for so many rows of up to `size` positions."""
        stacks = {}
        for name, numbers in self.layers(config).items():
            ring = min(config.layer(numbers[0]).window or size, size)
            shape = (len(numbers), rows, config.kv_heads, ring, config.head_size)
            stacks[name] = _cut(empty(self.kv, shape, jnp.dtype(config.dtype)))
        return stacks

    def entries(self, config: Decoder, kept: Kept) -> dict[str, Entries]:
        """Keys and values of a pass as the cache has them, `[l, b, k, s, h]`: what one head reads stands together."""
        stacks = {}
        for name, wanted in self.layers(config).items():
            sources = {path: numbers for path, numbers in blocks(config).items() if set(numbers) & set(wanted)}
            order = [number for numbers in sources.values() for number in numbers]
            k, v = (jnp.concatenate([kept[path][i] for path in sources]) for i in range(2))
            if order != list(wanted):
                picked = np.array([order.index(number) for number in wanted])
                k, v = k[picked], v[picked]
            stacks[name] = stored(jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3), self.kv)
        return stacks

    def seen(
        self, config: Decoder, stacks: Stacks, position: Int[Array, "b"], clock: Int[Array, ""]
    ) -> dict[str, Cached]:
        """What each block sees: its stack, where in it its layers are, and the stretch of the ring that each row has,
        which ends before the place `clock`."""
        seen, layers = {}, self.layers(config)
        for path, numbers in blocks(config).items():
            name = self.stack_of(config, numbers[0])
            ring = stacks[name].k.shape[3]
            count = jnp.minimum(position, ring)
            places = np.array([layers[name].index(number) for number in numbers], np.int32)
            seen[path] = Cached.of(stacks[name], (clock - count) % ring, count, places)
        return seen


def written(stacks: Stacks, new: Stacks, clock: Int[Array, ""]) -> dict[str, Entries]:
    """The stacks with one more entry a row, at the place `clock`: one slice of each."""

    def put(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, clock % old.shape[3], 3)

    return {name: _cut(jax.tree.map(put, old, new[name])) for name, old in stacks.items()}


def placed(
    stacks: Stacks,
    read: Stacks,
    source: Int[Array, "s"],
    slot: Int[Array, "s"],
    lengths: Int[Array, "r"],
    clock: Int[Array, ""],
) -> dict[str, Entries]:
    """The stacks with prompts that were read in some of their rows: in `slot` that of row `source` of `read`, of so
    many positions the last ones that the ring has room for, the newest right before the place `clock`.

    All rows are written again, in a few large copies: row by row it is thousands of small ones. A layer at a time, so
    that what is on the way takes a layer's room, not the cache's.
    """
    rows = next(iter(stacks.values())).k.shape[1]
    seat = jnp.full(rows, -1, jnp.int32).at[slot].set(jnp.arange(slot.shape[0], dtype=jnp.int32))
    source = source[jnp.maximum(seat, 0)]

    def put(into: Array, read: Array) -> Array:
        ring, behind = into.shape[2], into.shape[3:]  # scales have no axis of a head's numbers
        padded = jnp.pad(read, ((0, 0), (0, 0), (ring, 0), *((0, 0) for _ in behind)))

        def newest(source: Array, end: Array) -> Array:
            at = (source, 0, end, *(0 for _ in behind))
            return jax.lax.dynamic_slice(padded, at, (1, read.shape[1], ring, *behind))[0]

        own = jnp.roll(jax.vmap(newest)(source, lengths[source]), clock, axis=2)
        seated = (seat >= 0).reshape(-1, *(1 for _ in own.shape[1:]))
        return jnp.where(seated, own.astype(into.dtype), into)

    def layers(stack: Array, read: Array) -> Array:
        def layer(i: Array, stack: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(stack, put(stack[i], read[i]), i, 0)

        return jax.lax.fori_loop(0, stack.shape[0], layer, stack)

    return {name: _cut(jax.tree.map(layers, stack, read[name])) for name, stack in stacks.items()}


def _cut(entries: Entries) -> Entries:
    return jax.tree.map(lambda x: constrain(x, "l b k t h" if x.ndim == 5 else "l b k t"), entries)
