# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token a row over a cache, by a Mosaic kernel for Hopper GPUs.

On an H200 (jax 0.11) that copies at 3.8 TB/s, 256 rows of 2048 places, 32 query heads over 8 of 128: 564 us in bf16,
which is all of that, where XLA takes 653; 329 us in int8 and 340 in fp8, where XLA takes 485 and 493.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.kernels.decode_attention.around import blocks_of, check, served, sizes
from jaxpost.kernels.decode_attention.cache import Cached
from jaxpost.kernels.devices import check_hopper
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.kernels.tuning import tuned

COLUMNS = 8
"""Matrix units take columns (here: query heads) by eights."""

ROWS = 64
"""They take rows (here: places of the cache, and numbers of a head) by sixty-fours."""

MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Tiling:
    """Places in a tile, tiles of a head that are on their way or in use at a time, and between how many blocks of
    threads the tiles of a head are divided (0: as many as fill the device)."""

    places: int = 128
    stages: int = 2
    splits: int = 0

    def __post_init__(self) -> None:
        if self.places % ROWS or self.places > 256 or self.stages < 1:
            raise ValueError(f"{self}: places are 64, 128, 192 or 256, and stages at least one")


def decode_attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    cached: Cached,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Float[Array, "b s n h"]:
    check_hopper()
    check(q, k, cached)
    check_shapes(q, cached)

    def kernel(q: Array, k: Array, v: Array, cached: Cached) -> Array:
        tiling = tuned("decode_attention", "pallas_gpu", sizes(cached), untuned(cached))
        return attend(q, k, v, cached, window, scale, cap, tiling)

    return served(kernel, q, k, v, cached, window, scale, cap)


def untuned(cached: Cached) -> Tiling:
    """What was best of a few on an H200: several blocks of threads to a multiprocessor, so that one computes while
    others wait, and of codes large tiles, since what a tile costs beside its bytes weighs twice."""
    width, size = cached.k.dtype.itemsize, cached.k.shape[4]
    if width == 1 and size == 128:
        return Tiling(places=128, stages=2)
    return Tiling(places=64, stages=3 if width * size <= 256 else 2)


def check_shapes(q: Array, cached: Cached) -> None:
    """Raises `Unsupported` for what the kernel cannot be built for."""
    places, size = cached.k.shape[3:]
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise Unsupported(f"computes in 16 bits, not in {q.dtype}")
    if cached.k_scale is None and cached.k.dtype != q.dtype:
        raise Unsupported(f"a cache of {cached.k.dtype} for queries of {q.dtype}")
    if cached.k_scale is not None and cached.k.dtype not in (jnp.int8, jnp.float8_e4m3fn):
        raise Unsupported(f"codes of {cached.k.dtype}")
    if size not in (64, 128, 256):
        raise Unsupported(f"head size {size} is not 64, 128 or 256")
    if places % 8 or places < ROWS:
        raise Unsupported(f"{places} places are not a multiple of 8 from 64 on")
    if q.shape[2] // cached.k.shape[2] > 4 * COLUMNS:
        raise Unsupported("more than 32 query heads to a key/value head")


def attend(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    cached: Cached,
    window: int | None,
    scale: float,
    cap: float | None,
    tiling: Tiling,
) -> Float[Array, "b s n h"]:
    """The kernel, what it needs of the new tokens, and the sum over its splits."""
    # Here, because jax before 0.11 lacks some of what it imports.
    from jaxpost.kernels.decode_attention.pallas_gpu_body import Plan, walk

    batch, _, heads, size = q.shape
    kv_heads, places = cached.k.shape[2:4]
    tile = fitting(tiling.places, places)
    plan = Plan(
        places=places, tile=tile, stages=tiling.stages, splits=splits(tiling, batch * kv_heads, -(-places // tile)),
        size=size, group=heads // kv_heads, codes=cached.k.dtype, scale=scale, cap=cap,
    )  # fmt: skip
    out, total = walk(plan, blocks_of(cached, window, tile), q[:, 0], k[:, 0], v[:, 0], cached)
    if total is not None:
        weights = jax.nn.softmax(math.log(2) * total, axis=2)  # logarithms to base two
        out = jnp.einsum("bksg,bkshg->bkgh", weights, out)[:, :, : plan.group]
    return out.reshape(q.shape).astype(v.dtype)


def fitting(most: int, places: int) -> int:
    """How many places a tile has: no more than there are, and where possible such that tiles come out even."""
    sizes = [size for size in range(ROWS, most + 1, ROWS) if size <= places]
    even = [size for size in sizes if places % size == 0]
    return (even or sizes)[-1]


def splits(tiling: Tiling, rows: int, tiles: int) -> int:
    """Blocks of threads for each of so many heads: two for each multiprocessor in all, where there are tiles enough."""
    return min(tiling.splits or max(2 * MULTIPROCESSORS // rows, 1), tiles)
