# SPDX-License-Identifier: Apache-2.0
"""The body of the Hopper kernel: a matrix product with a low-rank one beside it, in one pass over x.

Blocks stay on their multiprocessor and take tiles of the result in turn, two blocks beside each other tiles of the same
columns, whose part of w each copies half of for both. One warpgroup copies operands into shared memory, two multiply.
`s = x a` comes out of the tiles of the first columns, which all blocks do first: the multiplication by `a` is there a
narrow one beside the wide one, on operands that lie in shared memory anyway. Every tile ends with one more step of its
contraction, over `s` and `b` instead of over x and w: a semaphore for each stretch of rows says that their s is there.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxpost.arrays import Array

HALF = 64
"""Rows of a tile that each of the two multiplying warpgroups has: those of one instruction."""
ROWS = 2 * HALF
PAIR = 2
"""Blocks that copy for each other."""


@dataclass(frozen=True)
class Tiles:
    """Tunables. `columns` of a tile of the result (it has 128 rows), `depth` of a step of the contraction, `stages` of
    operands in shared memory; `out` columns are written at a time; `width` tiles beside each other are done before
    those below them, so that their operands are found in the cache."""

    columns: int = 256
    depth: int = 64
    stages: int = 3
    out: int = 256
    width: int = 8

    def shared(self, rank: int) -> int:
        """Bytes of shared memory."""
        stage = self.depth * (ROWS + self.columns + rank)
        return 2 * (self.stages * stage + rank * (ROWS + self.columns) + ROWS * self.out)


# Traced, lowered and compiled once for each shape, however many products of a layer have it.
@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def lowrank(x: Array, w: Array, a: Array, b: Array, across: bool, tiles: Tiles, cores: int) -> tuple[Array, Array]:
    """`y = x w + (x a^T) b` `[t n]` and `s = x a^T` `[t r]`, from x `[t k]`, w `[k n]` (`across`: `[n k]`), a `[r k]`
    and b `[r n]`, all of 16 bits; sums in float32. t, n and k are whole pairs of tiles, tiles and steps. `cores` is how
    many multiprocessors there are: not more, else blocks would wait for others that cannot start."""
    (t, k), (r, n) = x.shape, b.shape
    depth, columns, stages = tiles.depth, tiles.columns, tiles.stages
    size = _Sizes(t // (PAIR * ROWS), n // columns, k // depth, r, cores // PAIR, across, tiles)

    def shared(*shape: int, minor: int | None = None) -> Any:
        swizzle = plgpu.find_swizzle(8 * x.dtype.itemsize * (minor or shape[-1]))
        laid = plgpu.TilingTransform((8, swizzle // x.dtype.itemsize)), plgpu.SwizzleTransform(swizzle)
        return plgpu.SMEM(shape, x.dtype, transforms=laid)

    return plgpu.kernel(
        functools.partial(_body, size),
        out_type=(jax.ShapeDtypeStruct((t, n), x.dtype), jax.ShapeDtypeStruct((t, r), x.dtype)),
        scratch_types=dict(
            x_tile=shared(stages, ROWS, depth),
            # The two operands of an instruction must be swizzled alike: as the one with the shorter rows allows.
            w_tile=shared(stages, columns, depth) if across else shared(stages, depth, columns, minor=depth),
            a_tile=shared(stages, r, depth),
            b_tile=shared(r, columns, minor=r),
            s_tile=shared(ROWS, r),
            y_tile=shared(2, HALF, tiles.out),
            full=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            empty=plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=2, num_barriers=stages),
            low_full=plgpu.Barrier(num_arrivals=2),
            low_empty=plgpu.Barrier(num_arrivals=2),
        ),
        grid=(size.pairs,),
        grid_names=("pair",),
        cluster=(PAIR,),
        cluster_names=("block",),
        num_threads=3,
        thread_name="warpgroup",
        kernel_name="lowrank_matmul",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(x, w, a, b)


@dataclass(frozen=True)
class _Sizes:
    """How many pairs of tiles there are each way, and steps in a tile's contraction."""

    down: int
    beside: int
    steps: int
    rank: int
    pairs: int
    across: bool
    tiles: Tiles

    def share(self, count: int) -> Any:
        """How many of so many pairs of tiles, dealt out in turn, a pair of blocks has."""
        return lax.div(count - lax.axis_index("pair") + self.pairs - 1, self.pairs)

    def place(self, index: Any, opening: bool) -> tuple[Any, Any]:
        """Where a block's tile of that number stands: row and column of tiles."""
        number, own = lax.axis_index("pair") + index * self.pairs, lax.axis_index("block")
        if opening:
            return number * PAIR + own, jnp.int32(0)
        row, column = plgpu.planar_snake(number - self.down, (self.down, self.beside - 1), 1, self.tiles.width)
        return row * PAIR + own, column + 1


def _body(size: _Sizes, x: Any, w: Any, a: Any, b: Any, y: Any, s: Any, **scratch: Any) -> None:
    group = lax.axis_index("warpgroup")
    ready = pl.get_global(plgpu.SemaphoreType.REGULAR((size.down * PAIR,)))
    opening, total = size.share(size.down), size.share(size.down * size.beside)

    def each(tile: Any) -> None:
        lax.fori_loop(0, opening, lambda index, _: tile(index, True), None)
        if size.beside > 1:
            lax.fori_loop(opening, total, lambda index, _: tile(index, False), None)

    @pl.when(group == 2)
    def _copying() -> None:
        plgpu.set_max_registers(40, action="decrease")
        each(functools.partial(_copied, size, ready, x, w, a, b, s, **scratch))
        # A block must not end while the other may still tell it what is free.
        stages, steps = size.tiles.stages, total * size.steps

        def told(step: Any, _: None) -> None:
            plgpu.barrier_wait(scratch["empty"].at[lax.rem(step, stages)])

        lax.fori_loop(lax.max(steps - stages, 0), steps, told, None)

        @pl.when(total > 0)
        def _() -> None:
            plgpu.barrier_wait(scratch["low_empty"])

    @pl.when(group < 2)
    def _multiplying() -> None:
        plgpu.set_max_registers(232, action="increase")
        each(functools.partial(_multiplied, size, group, ready, y, s, **scratch))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _copied(
    size: _Sizes, ready: Any, x: Any, w: Any, a: Any, b: Any, s: Any, index: Any, opening: bool,
    *, x_tile: Any, w_tile: Any, a_tile: Any, b_tile: Any, s_tile: Any, full: Any, empty: Any, low_full: Any,
    low_empty: Any, **_: Any,
) -> None:  # fmt: skip
    """All that a tile needs, copied into shared memory as places there become free."""
    row, column = size.place(index, opening)
    rows, columns = pl.ds(row * ROWS, ROWS), pl.ds(column * size.tiles.columns, size.tiles.columns)
    depth, stages = size.tiles.depth, size.tiles.stages

    def step(k: Any, _: None) -> None:
        number = index * size.steps + k
        slot, along = lax.rem(number, stages), pl.ds(k * depth, depth)

        @pl.when(number >= stages)
        def _() -> None:
            plgpu.barrier_wait(empty.at[slot])

        of_w = w.at[columns, along] if size.across else w.at[along, columns]
        plgpu.copy_gmem_to_smem(of_w, w_tile.at[slot], full.at[slot], collective_axes="block")
        # A barrier counts copies, so there are three of them either way.
        if opening:
            plgpu.copy_gmem_to_smem(x.at[rows, along], x_tile.at[slot], full.at[slot])
            plgpu.copy_gmem_to_smem(a.at[:, along], a_tile.at[slot], full.at[slot], collective_axes="block")
        else:
            for half in range(2):
                own = pl.ds(row * ROWS + half * HALF, HALF)
                into = x_tile.at[slot, half * HALF : (half + 1) * HALF]
                plgpu.copy_gmem_to_smem(x.at[own, along], into, full.at[slot])

    lax.fori_loop(0, size.steps, step, None)

    @pl.when(index > 0)
    def _() -> None:
        plgpu.barrier_wait(low_empty)

    if opening:
        for half in range(2):
            part = slice(half * size.rank // 2, (half + 1) * size.rank // 2)
            plgpu.copy_gmem_to_smem(b.at[part, columns], b_tile.at[part], low_full)
    else:
        plgpu.copy_gmem_to_smem(b.at[:, columns], b_tile, low_full)
        pl.semaphore_wait(ready.at[row], value=2, decrement=False)
        plgpu.copy_gmem_to_smem(s.at[rows], s_tile, low_full)


def _multiplied(
    size: _Sizes, group: Any, ready: Any, y: Any, s: Any, index: Any, opening: bool,
    *, x_tile: Any, w_tile: Any, a_tile: Any, b_tile: Any, s_tile: Any, y_tile: Any, full: Any, empty: Any,
    low_full: Any, low_empty: Any,
) -> None:  # fmt: skip
    """A warpgroup's half of a tile, multiplied and sent off."""
    row, column = size.place(index, opening)
    rows, half = pl.ds(row * ROWS + group * HALF, HALF), pl.ds(group * HALF, HALF)
    start, stages = index * size.steps, size.tiles.stages

    def product(acc: Any, low: Any = None) -> Array:
        def step(k: Any, _: None) -> None:
            slot = lax.rem(start + k, stages)
            plgpu.barrier_wait(full.at[slot])
            own = x_tile.at[slot, half]
            plgpu.wgmma(acc, own, w_tile.at[slot].transpose((1, 0)) if size.across else w_tile.at[slot])
            if low is not None:
                plgpu.wgmma(low, own, a_tile.at[slot].transpose((1, 0)))
            plgpu.wgmma_wait(2 if opening else 1)

            @pl.when(k > 0)
            def _() -> None:  # what the step before has read is free
                plgpu.barrier_arrive(empty.at[lax.rem(start + k - 1, stages)])

        lax.fori_loop(0, size.steps, step, None)
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(empty.at[lax.rem(start + size.steps - 1, stages)])
        if low is not None:
            s_tile[half] = low[...].astype(s.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(s_tile.at[half], s.at[rows])
        plgpu.barrier_wait(low_full)
        plgpu.wgmma(acc, s_tile.at[half], b_tile)
        if low is not None:
            plgpu.wait_smem_to_gmem(0)
            pl.semaphore_signal(ready.at[row])
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(low_empty)
        return acc[...]

    wide = plgpu.WGMMAAccumulatorRef((HALF, size.tiles.columns), jnp.float32)
    narrow = [plgpu.WGMMAAccumulatorRef((HALF, size.rank), jnp.float32)] if opening else []
    found = pl.run_scoped(product, wide, *narrow).astype(y.dtype)
    out = size.tiles.out
    for part in range(size.tiles.columns // out):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        y_tile[group] = found[:, part * out : (part + 1) * out]
        plgpu.commit_smem()
        columns = pl.ds(column * size.tiles.columns + part * out, out)
        plgpu.copy_smem_to_gmem(y_tile.at[group], y.at[rows, columns])
