# SPDX-License-Identifier: Apache-2.0
"""The Mosaic kernel of 8-bit attention.

Scores stand with keys in sublanes and queries in lanes, [keys, queries]: what belongs to a query (its scale, the
softmax's maximum and sum, what it sees first) is then one row that broadcasts for nothing, the softmax reduces over
sublanes, and neither product needs a transposition. Results are summed as [head size, queries] likewise, and turned
once.

A block of keys is computed in two halves, and the scores of the next half are made beside the softmax of this one: the
two have nothing to do with each other, so matrix and vector units work at the same time, and scores go through memory
instead of filling all registers.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxpost.arrays import Array, Float, Int

LEAST, HIDDEN = -1e30, -2e30
"""Where a maximum begins, and what hidden scores are: below it, so that their weight is zero even before any other."""

ROUND = 1.5 * 2**23
"""Added to a float32 of moderate size it leaves the nearest integer in the last bits of the sum."""

LIMIT = 56 * 2**20
"""Bytes of a TPU's fast memory that the kernel may take: a row's keys and values, those of two heads at a time, their
codes, and less than 8 MiB for blocks."""


def runs(
    starts: Int[Array, "b s"], real: Array, block_q: int, block_k: int
) -> tuple[Int[Array, "b blocks"], Int[Array, "b blocks"]]:
    """For each block of queries the first block of keys that any of them sees, behind all others where there is only
    padding; and the first from which on no query's start hides anything."""
    parts = starts.reshape(starts.shape[0], -1, block_q)
    some = jnp.any(real.reshape(parts.shape), axis=2)
    first = jnp.where(some, jnp.min(parts, axis=2) // block_k, starts.shape[1] // block_k)
    return first.astype(jnp.int32), (-(-jnp.max(parts, axis=2) // block_k)).astype(jnp.int32)


def run(
    q: Float[Array, "b n h s"],
    k: Float[Array, "b k s h"],
    v: Float[Array, "b k h s"],
    starts: Int[Array, "b s"],
    first: Int[Array, "b blocks"],
    clear: Int[Array, "b blocks"],
    lengths: Int[Array, "b"],
    scale: float,
    block_q: int,
    block_k: int,
    interpret: bool = False,
) -> Float[Array, "b n s h"]:
    """`softmax(scale q k) v` in the queries' type. Of each row `lengths` tokens are real, those behind are padding.

    Keys and values are quantised when their head begins, and stay for all queries that it serves.
    """
    b, n, h, s = q.shape
    group, half = n // k.shape[1], block_k // 2

    def of_head(b: Any, k: Any, g: Any, i: Any, *_: Any) -> Any:
        return b, k, 0, 0

    def of_queries(b: Any, k: Any, g: Any, i: Any, *_: Any) -> Any:
        return b, k * group + g, 0, i

    def of_results(b: Any, k: Any, g: Any, i: Any, *_: Any) -> Any:
        return b, k * group + g, i, 0

    def of_starts(b: Any, k: Any, g: Any, i: Any, *_: Any) -> Any:
        return b, 0, i

    def wide(*shape: int) -> Any:
        return pltpu.VMEM(shape, jnp.float32)

    def narrow(*shape: int) -> Any:
        return pltpu.VMEM(shape, jnp.int8)

    scratch = _Scratch(
        k=narrow(s, h), scales_k=wide(s // block_k, 1, block_q),
        v=narrow(s // half, h, half), scales_v=wide(h, 1), mean_v=wide(h, 1),
        q=narrow(h, block_q), scales_q=wide(1, block_q),
        most=wide(1, block_q), total=wide(1, block_q), summed=wide(h, block_q),
        top=wide(1, block_q), even=wide(half, block_q), odd=wide(half, block_q),
    )  # fmt: skip
    return pl.pallas_call(
        functools.partial(_kernel, factor=scale * math.log2(math.e)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(b, k.shape[1], group, s // block_q),
            in_specs=[
                pl.BlockSpec((None, None, h, block_q), of_queries),
                pl.BlockSpec((None, None, s, h), of_head),
                pl.BlockSpec((None, None, h, s), of_head),
                pl.BlockSpec((None, 1, block_q), of_starts),
            ],
            out_specs=pl.BlockSpec((None, None, block_q, h), of_results),
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((b, n, s, h), q.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=LIMIT
        ),
        name="quantised_attention",
        interpret=interpret,
    )(first, clear, lengths, q, k, v, starts[:, None])


class _Scratch(NamedTuple):
    """What the kernel keeps in fast memory: codes and scales, the softmax's sums, and scores of two half blocks."""

    k: Any
    scales_k: Any
    v: Any
    scales_v: Any
    mean_v: Any
    q: Any
    scales_q: Any
    most: Any
    total: Any
    summed: Any
    top: Any
    even: Any
    odd: Any


def _kernel(
    first: Any, clear: Any, lengths: Any, q: Any, k: Any, v: Any, starts: Any, out: Any, *kept: Any, factor: float
) -> None:
    own = _Scratch(*kept)
    b, group, i = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when((group == 0) & (i == 0))
    def head() -> None:
        _keys(k, lengths[b], own)
        _values(v, lengths[b], own)

    wide = q[...].astype(jnp.float32)
    scale = _scale(jnp.max(jnp.abs(wide), axis=0, keepdims=True))
    own.q[...] = _codes(wide / scale)
    own.scales_q[...] = scale * factor
    own.most[...] = jnp.full_like(own.most, LEAST)
    own.total[...] = jnp.zeros_like(own.total)
    own.summed[...] = jnp.zeros_like(own.summed)
    _attend(i, first[b, i], clear[b, i], starts, own)
    mean = own.summed[...] / jnp.maximum(own.total[...], 1e-20)
    out[...] = (mean * own.scales_v[...] + own.mean_v[...]).T.astype(out.dtype)


def _keys(k: Any, length: Any, own: _Scratch) -> None:
    """Codes and scales of a head's keys less their mean, one scale for each block.

    What is taken from all keys alike changes all of a query's scores alike, which no softmax sees; but keys have
    channels that are far from zero for every token, and without them the codes are fine.
    """
    blocks = own.scales_k.shape[0]
    size = k.shape[0] // blocks

    def block(t: Any) -> tuple[Any, Array, Array]:
        places = pl.ds(pl.multiple_of(t * size, size), size)
        real = t * size + jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0) < length
        return places, real, k[places, :].astype(jnp.float32)

    def add(t: Any, total: Array) -> Array:
        _, real, wide = block(t)
        return total + jnp.sum(jnp.where(real, wide, 0), axis=0, keepdims=True)

    def code(t: Any, _: Any) -> None:
        places, real, wide = block(t)
        wide = jnp.where(real, wide - mean, 0)  # padding must not decide a scale
        largest = jnp.max(jnp.max(jnp.abs(wide), axis=0, keepdims=True), axis=1, keepdims=True)
        scale = _scale(largest)
        own.k[places, :] = _codes(wide * (1 / scale))
        own.scales_k[t] = jnp.broadcast_to(scale, own.scales_k.shape[1:])

    total = jax.lax.fori_loop(0, blocks, add, jnp.zeros((1, k.shape[1]), jnp.float32))
    mean = total / jnp.maximum(length, 1).astype(jnp.float32)
    jax.lax.fori_loop(0, blocks, code, None)


def _values(v: Any, length: Any, own: _Scratch) -> None:
    """Codes, scales and mean of a head's values, a scale and a mean for each channel: weights sum to one, so the mean
    of what is attended to is added to the result."""
    halves, h, size = own.v.shape

    def half(t: Any) -> tuple[Array, Array]:
        places = pl.ds(pl.multiple_of(t * size, size), size)
        real = t * size + jax.lax.broadcasted_iota(jnp.int32, (1, size), 1) < length
        return real, v[:, places].astype(jnp.float32)

    def add(t: Any, total: Array) -> Array:
        real, wide = half(t)
        return total + jnp.sum(jnp.where(real, wide, 0), axis=1, keepdims=True)

    def top(t: Any, largest: Array) -> Array:
        real, wide = half(t)
        return jnp.maximum(largest, jnp.max(jnp.where(real, jnp.abs(wide - mean), 0), axis=1, keepdims=True))

    def code(t: Any, _: Any) -> None:
        real, wide = half(t)
        own.v[t] = _codes(jnp.where(real, (wide - mean) * per_step, 0))

    none = jnp.zeros((h, 1), jnp.float32)
    mean = jax.lax.fori_loop(0, halves, add, none) / jnp.maximum(length, 1).astype(jnp.float32)
    scale = _scale(jax.lax.fori_loop(0, halves, top, none))
    per_step = 1 / scale
    own.scales_v[...], own.mean_v[...] = scale, mean
    jax.lax.fori_loop(0, halves, code, None)


def _scale(largest: Array) -> Array:
    return jnp.maximum(largest, 1e-20) / 127


def _codes(steps: Array) -> Array:
    """The nearest integers of numbers from -127 to 127: cut to 8 bits, the last bits of the sum are they."""
    return pltpu.bitcast(steps + ROUND, jnp.int32).astype(jnp.int8)


def _attend(i: Any, begin: Any, clear: Any, starts: Any, own: _Scratch) -> None:
    """Adds all blocks of keys that a block of queries sees to the softmax's sums."""
    blocks, half, block_q = own.scales_k.shape[0], own.v.shape[-1], own.q.shape[-1]
    end = ((i + 1) * block_q - 1) // (2 * half) + 1

    def scored(block: Any, part: int, hides: bool, into: Any) -> Array:
        """Writes the scores of half a block of keys, and gives the largest of each query."""
        place = pl.multiple_of(block * 2 * half + part * half, half)
        scores = jax.lax.dot(own.k[pl.ds(place, half), :], own.q[...], preferred_element_type=jnp.int32)
        scores = scores.astype(jnp.float32) * (own.scales_q[...] * own.scales_k[block])
        if hides:
            key = place + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            query = i * block_q + jax.lax.broadcasted_iota(jnp.int32, (1, block_q), 1)
            scores = jnp.where((key <= query) & (key >= starts[...]), scores, HIDDEN)
        into[...] = scores
        return jnp.max(scores, axis=0, keepdims=True)

    def added(block: Any, part: int, scores: Any, largest: Array) -> None:
        """Adds half a block to the softmax's sums. Weights are 0 to 127: the factor stands in both, and cancels."""
        before = own.most[...]
        now = jnp.maximum(before, largest)
        shrink = jnp.exp2(before - now)
        weights = jnp.exp2(scores[...] - (now - math.log2(127.0)))
        own.most[...] = now
        own.total[...] = shrink * own.total[...] + jnp.sum(weights, axis=0, keepdims=True)
        more = jax.lax.dot(own.v[block * 2 + part], _codes(weights), preferred_element_type=jnp.int32)
        own.summed[...] = shrink * own.summed[...] + more.astype(jnp.float32)

    def both(block: Any, hides: bool, next_hides: bool) -> None:
        last = scored(block, 1, hides, own.odd)
        added(block, 0, own.even, own.top[...])
        own.top[...] = scored(jnp.minimum(block + 1, blocks - 1), 0, next_hides, own.even)
        added(block, 1, own.odd, last)

    def hidden(block: Any) -> Any:
        return (block < clear) | ((block + 1) * 2 * half > i * block_q + 1)

    def step(block: Any, _: Any) -> None:
        here, after = hidden(block), hidden(block + 1) & (block + 1 < end)
        for hides in (False, True):
            for next_hides in (False, True):
                pl.when((here == hides) & (after == next_hides))(functools.partial(both, block, hides, next_hides))

    own.top[...] = scored(jnp.minimum(begin, blocks - 1), 0, True, own.even)
    jax.lax.fori_loop(begin, end, step, None)
