# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token a row over a cache, by a Mosaic kernel for TPUs.

Compiled for TPUs, never timed on one. 32 rows of 2048 places, 32 query heads over 8 of 128, on a v5e: the whole kernel
for int8 is 2,579 instructions, of which a step (all heads, 1024 places) runs most, and the bytes of a step take 2,400
cycles to come: 154 thousand for all 64. The compiler reckons 413 thousand cycles for what XLA makes of the same cache,
and 927 thousand for one of bf16.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.kernels.attention.reference import grouped
from jaxpost.kernels.decode_attention.around import blocks_of, check, served, sizes
from jaxpost.kernels.decode_attention.cache import Cached
from jaxpost.kernels.decode_attention.pallas_tpu_body import Plan, walk
from jaxpost.kernels.devices import check_tpu
from jaxpost.kernels.dispatch import Unsupported, interpreted
from jaxpost.kernels.tuning import tuned

SUBLANES, LANES = 8, 128
"""Numbers of 32 bits in a vector register."""


@dataclass(frozen=True)
class Tiling:
    """How much of keys, and of values, is on its way or in use at a time, in KiB: a block takes all heads of a row
    where they fit, and as many places. A step costs about a third of a microsecond whatever it does, in which a v5e
    reads 256 KiB and a v6e 512."""

    block: int = 1024

    def __post_init__(self) -> None:
        if self.block < 16:
            raise ValueError(f"{self}: blocks are of 16 KiB at least")


def decode_attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    cached: Cached,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Float[Array, "b s n h"]:
    check_tpu()
    check(q, k, cached)
    check_shapes(q, cached)

    def kernel(q: Array, k: Array, v: Array, cached: Cached) -> Array:
        tiling = tuned("decode_attention", "pallas_tpu", sizes(cached), Tiling())
        return attend(q, k, v, cached, window, scale, cap, tiling, interpreted())

    return served(kernel, q, k, v, cached, window, scale, cap)


def check_shapes(q: Array, cached: Cached) -> None:
    """Raises `Unsupported` for what the kernel does not compile for, or wastes most of a register on."""
    size = cached.k.shape[4]
    if size % 64 or size > 256:
        raise Unsupported(f"head size {size} is not 64, 128, 192 or 256")
    if cached.k_scale is None and not jnp.issubdtype(cached.k.dtype, jnp.floating):
        raise Unsupported(f"codes of {cached.k.dtype} without scales")


def attend(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    cached: Cached,
    window: int | None,
    scale: float,
    cap: float | None,
    tiling: Tiling,
    interpret: bool = False,
) -> Float[Array, "b s n h"]:
    """The kernel, with queries by their key/value heads, filled up to whole registers."""
    kv_heads, places, size = cached.k.shape[2:]
    group = q.shape[2] // kv_heads
    own = jnp.pad(grouped(q, kv_heads)[:, 0], ((0, 0), (0, 0), (0, -group % SUBLANES), (0, 0)))
    most = tiling.block * 1024 // (size * cached.k.dtype.itemsize)
    heads, block = fitting(most, kv_heads, places)
    plan = Plan(heads, block, turned=size < LANES, scale=scale, cap=cap, interpret=interpret)
    walked = blocks_of(cached, window, block)
    out = walk(plan, walked, own, k[:, 0], v[:, 0], cached)
    return out[:, :, :group].reshape(q.shape)


def fitting(most: int, kv_heads: int, places: int) -> tuple[int, int]:
    """Of how many heads and places a block is, so many in all at most: whole registers, or the whole axis."""
    heads = kv_heads
    while heads > SUBLANES and heads % (2 * SUBLANES) == 0 and heads * LANES > most:
        heads //= 2
    limit = max(most // heads, LANES)
    if places <= limit:
        return heads, places
    sizes = range(limit // LANES * LANES, 0, -LANES)
    # A block that runs over the end costs a selection of its values: the largest that does not, unless it is tiny.
    even = next((size for size in sizes if places % size == 0), 0)
    return heads, even if 4 * even >= limit else sizes[0]
