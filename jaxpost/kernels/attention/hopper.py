# SPDX-License-Identifier: Apache-2.0
"""What the kernels for Hopper have in common: attention of rows in which each query sees the keys from some first one
up to its own. Segments, windows and padding are all of that kind.

A block of threads has 64 queries of two heads beside each other that read the same keys (where heads go by odd numbers,
128 queries of one), walks over the tiles of keys that any of them sees, and never looks at others. One warpgroup copies
into shared memory, two multiply: while one makes weights of its scores, matrix units serve the other. Backwards two
kernels make scores again: one for the queries' gradient, as forwards, and one for that of keys and values, where a
block of threads has 128 keys and walks over the queries of all heads that read them. Nothing is added up in memory, so
results do not depend on who comes first.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from jaxpost.arrays import Array

plgpu: Any = mosaic_gpu  # its types differ from one jax to the next

ROWS = 64
"""What a warpgroup has of the axis whose sums it keeps: the rows of one instruction."""
PAIR = 2
"""Warpgroups that multiply, on what one copies."""
SPAN = PAIR * ROWS
LOG2E = math.log2(math.e)
SCORES = plgpu.Layout.WGMMA
OF_ROW, OF_COLUMN = SCORES.reduce(1), SCORES.reduce(0)


@dataclass(frozen=True)
class Tiles:
    """Tunables: keys in a tile, and tiles in shared memory, forwards and for the queries' gradient; queries in a tile,
    and tiles, for that of keys and values."""

    keys: int = 64
    stages: int = 3
    keys_dq: int = 64
    stages_dq: int = 3
    queries_dkv: int = 64
    stages_dkv: int = 2


@dataclass(frozen=True)
class Plan:
    """What kernels are built for: query heads to a key/value head, the head size, scale and cap of scores, tiles."""

    group: int
    size: int
    scale: float
    cap: float | None
    tiles: Tiles

    @property
    def heads(self) -> int:
        """Query heads that a block of threads has."""
        return PAIR if self.group % PAIR == 0 else 1

    @property
    def queries(self) -> int:
        """Queries of each that it has."""
        return SPAN // self.heads

    def own(self) -> tuple[Any, Any]:
        """A multiplying warpgroup's head, and the first of its queries."""
        head, first = lax.axis_index("head") * self.heads, lax.axis_index("tile") * self.queries
        group = lax.axis_index("warpgroup")
        return (head + group, first) if self.heads == PAIR else (head, first + group * ROWS)

    def seen(self, start: Any, keys: int) -> tuple[Any, Any]:
        """From where to where the block's queries see keys, in tiles."""
        first = lax.axis_index("tile") * self.queries
        return lax.div(start[lax.axis_index("row"), first], keys), lax.div(first + self.queries + keys - 1, keys)

    def shared(self) -> Any:
        """The head of keys and values that it reads."""
        return lax.div(lax.axis_index("head") * self.heads, jnp.int32(self.group))

    def squashed(self, products: Array) -> tuple[Array, float, Array | None]:
        """Scores but for a factor, and the factor, which makes logarithms to base two of them: so it and the
        subtraction before a power are one instruction. With a cap also how fast they grow with their products."""
        if self.cap is None:
            return products, self.scale * LOG2E, None
        # tanh(x) by way of exp(2 x): the GPU's own has eleven bits.
        bent = 1.0 - 2.0 / (jnp.exp2(products * (2 * LOG2E * self.scale / self.cap)) + 1.0)
        return bent, self.cap * LOG2E, 1.0 - bent * bent

    def gradient(
        self, products: Array, dweights: Array, logarithm: Array, mean: Array, only: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Weights, and the gradient of the products but for the scale. `only` leaves scores that are seen."""
        scores, factor, growth = self.squashed(products)
        weights = jnp.exp2(only(scores) * factor - logarithm)
        dscores = weights * (dweights - mean)
        return weights, dscores if growth is None else dscores * growth


def kernel(body: Any, name: str, grid: tuple[int, int, int], results: Any, scratch: dict[str, Any]) -> Any:
    """A kernel with a block of threads for each head, or pair of heads, stretch of a row and row."""
    return plgpu.kernel(
        body,
        out_type=results,
        scratch_types=scratch,
        grid=grid,
        grid_names=("head", "tile", "row"),
        num_threads=PAIR + 1,
        thread_name="warpgroup",
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def swizzled(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the order that matrix units read."""
    width = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(8 * width * shape[-1])
    return plgpu.SMEM(
        shape, dtype, transforms=(plgpu.TilingTransform((8, swizzle // width)), plgpu.SwizzleTransform(swizzle))
    )


def roles(copy: Any, multiply: Any) -> None:
    """What the warpgroups do, the one that copies with few registers."""
    group = lax.axis_index("warpgroup")

    @pl.when(group == PAIR)
    def _() -> None:
        plgpu.set_max_registers(24, action="decrease")
        copy()

    @pl.when(group < PAIR)
    def _() -> None:
        plgpu.set_max_registers(240, action="increase")
        multiply(group)


def fetched(count: Any, stages: int, fetch: Any, empty: Any) -> None:
    """So many tiles copied in turn, each as its place becomes free; it waits until all places are free again."""

    def step(number: Any, _: None) -> None:
        slot = lax.rem(number, jnp.int32(stages))

        @pl.when(number >= stages)
        def _() -> None:
            plgpu.barrier_wait(empty.at[slot])

        @pl.when(number < count)
        def _() -> None:
            fetch(number, slot)

    lax.fori_loop(0, count + stages, step, None)


def zeros(rows: int, columns: int) -> Array:
    return plgpu.layout_cast(jnp.zeros((rows, columns), jnp.float32), SCORES)


def along(values: Array, shape: tuple[int, ...]) -> Array:
    """A number for each row, in all its columns."""
    return lax.broadcast_in_dim(values, shape, [0])


def down(values: Array, shape: tuple[int, ...]) -> Array:
    """A number for each column, in all its rows."""
    return lax.broadcast_in_dim(values, shape, [1])


def places(first: Any) -> Array:
    """Where a warpgroup's rows stand."""
    return plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=OF_ROW) + first


@dataclass(frozen=True)
class Seen:
    """Of a warpgroup's rows, from where to where (included) each sees columns; the largest of the first and the least
    of the second, between which all of them do."""

    low: Array
    high: Array
    largest: Any
    least: Any

    def only(self, size: int) -> Callable[[Array, Any], Array]:
        """A function of the scores of a tile (of that many columns) and its number that leaves what is seen."""

        def masked(scores: Array, tile: Any) -> Array:
            column = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=SCORES) + tile * size
            seen = (column >= along(self.low, scores.shape)) & (column <= along(self.high, scores.shape))
            return jnp.where(seen, scores, -jnp.inf)

        return masked

    def walk(self, low: Any, high: Any, size: int, step: Callable[..., Any], carry: Any) -> Any:
        """`step(tile, carry, only)` for these tiles of columns in turn. Those that all rows see whole, as most are in
        long rows, have a loop without comparisons."""
        first = jnp.clip(lax.div(self.largest + (size - 1), jnp.int32(size)), low, high)
        last = jnp.clip(lax.div(self.least + 1, jnp.int32(size)), first, high)
        masked, whole = self.only(size), lambda scores, tile: scores
        for begin, end, only in ((low, first, masked), (first, last, whole), (last, high, masked)):
            carry = lax.fori_loop(begin, end, functools.partial(step, only=only), carry)
        return carry
