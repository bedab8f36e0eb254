# SPDX-License-Identifier: Apache-2.0
"""The kernel for TPUs. The grid is rows, key/value heads, and blocks of the row's places; only blocks in which the row
sees something are loaded: behind its last one the grid stays where it is, and nothing is fetched or computed.

Codes of int8 are never turned into another type: queries, and then probabilities times values' scales, are whole
numbers in two parts of eight bits, which the matrix unit multiplies exactly. What is worked on element by element is
the scores alone.

A head of fewer numbers than a register has lanes is taken turned round, `[h, t]`: so XLA lays out such a cache by
itself, since the other way half of each register, and of the memory, would be empty.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxpost.arrays import Array
from jaxpost.kernels.decode_attention.cache import Cached

START, NUMBER, FIRST, BLOCKS, LAYER = range(5)  # around.blocks_of
LOW = -1e30
"""Below any score, and finite: the difference of two of them is a number."""


@dataclass(frozen=True)
class Plan:
    """What a kernel is built for: heads and places of a block, whether those stand last, scale and cap of scores."""

    heads: int
    block: int
    turned: bool
    scale: float
    cap: float | None
    interpret: bool = False


def walk(plan: Plan, walked: Array, queries: Array, k: Array, v: Array, cached: Cached) -> Array:
    """Attention of queries `[b, k, g, h]` to what is seen of the cache and to their own token's k and v `[b, k, h]`."""
    batch, kv_heads, group, size = queries.shape
    places = cached.k.shape[3]
    blocks, whole = -(-places // plan.block), cached.k.dtype == jnp.int8

    def here(row: Any, head: Any, i: Any, walked: Any) -> tuple[Any, ...]:
        block = walked[row, FIRST] + jnp.maximum(jnp.minimum(i, walked[row, BLOCKS] - 1), 0)
        return walked[row, LAYER], row, head, jnp.where(block >= blocks, block - blocks, block)

    def at_row(row: Any, head: Any, i: Any, walked: Any) -> tuple[Any, ...]:
        return row, head, 0, 0

    query = pl.BlockSpec((1, plan.heads, group, size), at_row)
    # An axis of one in front of the last: blocks are whole in their last two axes.
    token = pl.BlockSpec((1, plan.heads, 1, size), at_row)
    entry = pl.BlockSpec((1, 1, plan.heads, plan.block, size), lambda *at: (*here(*at), 0))
    if plan.turned:
        entry = pl.BlockSpec((1, 1, plan.heads, size, plan.block), lambda *at: (*here(*at)[:3], 0, here(*at)[3]))
    scale = pl.BlockSpec((1, 1, plan.heads, plan.block), here)
    scales = [] if cached.k_scale is None else [cached.k_scale, cached.v_scale]
    entries = [jnp.swapaxes(x, 3, 4) if plan.turned else x for x in (cached.k, cached.v)]
    column = pltpu.VMEM((plan.heads, group, 1), jnp.float32)
    scratch: list[Any] = [pltpu.VMEM((plan.heads, group, size), jnp.float32), column, column]
    scratch += [pltpu.VMEM((plan.heads, 2 * group, size), jnp.int8), column] if whole else []

    def body(walked: Any, q: Any, k: Any, v: Any, keys: Any, values: Any, *rest: Any) -> None:
        of_k, of_v = rest[: len(scales)] or (None, None)
        out, *scratch = rest[len(scales) :]
        _walk(plan, places, walked, (q, k, v), (keys, values, of_k, of_v), out, *scratch)

    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct(queries.shape, v.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, kv_heads // plan.heads, blocks),
            in_specs=[query, token, token, entry, entry, *[scale for _ in scales]],
            out_specs=query,
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * kv_heads * group * size * places,
            transcendentals=batch * kv_heads * group * places,
            bytes_accessed=sum(x[0].size * x.dtype.itemsize for x in (cached.k, cached.v, *scales)),
        ),
        interpret=plan.interpret,
        name="decode_attention",
    )(walked, queries, k[:, :, None], v[:, :, None], *entries, *scales)


def _walk(
    plan: Plan, places: int, walked: Any, token: Any, cache: Any, out: Any,
    sums: Any, most: Any, total: Any, parts: Any = None, steps: Any = None,
) -> None:  # fmt: skip
    row, i = pl.program_id(0), pl.program_id(2)
    q, k, v = token

    @pl.when(i == 0)
    def _() -> None:
        # The new token itself is where the softmax begins.
        for head in range(plan.heads):
            queries = q[0, head].astype(jnp.float32)
            own = jnp.sum(queries * k[0, head].astype(jnp.float32), axis=1, keepdims=True)
            most[head] = _scaled(plan, own)
            total[head] = jnp.ones_like(own)
            sums[head] = jnp.broadcast_to(v[0, head].astype(jnp.float32), queries.shape)
            if parts is not None:
                parts[head], steps[head] = _in_two_parts(queries)

    @pl.when(i < walked[row, BLOCKS])
    def _() -> None:
        block = walked[row, FIRST] + i
        begin = jnp.where(block >= -(-places // plan.block), block - -(-places // plan.block), block) * plan.block
        place = begin + lax.broadcasted_iota(jnp.int32, (1, plan.block), 1)
        back = place - walked[row, START]
        visible = jnp.where(back < 0, back + places, back) < walked[row, NUMBER]
        visible = visible & (place < places) if places % plan.block else visible
        for head in range(plan.heads):
            queries = (q[0, head], None) if parts is None else (parts[head], steps[head])
            keys, values = (x[0, 0, head] for x in cache[:2])
            of_k, of_v = (None if x is None else x[0, 0, pl.ds(head, 1)] for x in cache[2:])
            scores = jnp.where(visible, _scaled(plan, _scores(plan, queries, keys, of_k)), LOW)
            larger = jnp.maximum(most[head], jnp.max(scores, axis=1, keepdims=True))
            fading, weights = jnp.exp(most[head] - larger), jnp.exp(scores - larger)
            most[head] = larger
            total[head] = total[head] * fading + jnp.sum(weights, axis=1, keepdims=True)
            # What is not seen may be anything, and behind the end of the ring not even a number.
            values = _only_before(plan, values, places - begin) if places % plan.block else values
            of_v = of_v if of_v is None else jnp.where(visible, of_v, 0.0)
            sums[head] = sums[head] * fading + _weighted(plan, weights, values, of_v, out.dtype)

    @pl.when(i == pl.num_programs(2) - 1)
    def _() -> None:
        out[0] = (sums[...] / total[...]).astype(out.dtype)


def _scaled(plan: Plan, scores: Array) -> Array:
    scores = scores * plan.scale
    return scores if plan.cap is None else plan.cap * jnp.tanh(scores / plan.cap)


def _scores(plan: Plan, queries: tuple[Any, Any], keys: Array, scale: Any) -> Array:
    """Scores `[g, t]` of queries, or their two parts and steps, against keys or their codes."""
    own, steps = queries
    along = (((1,), (0 if plan.turned else 1,)), ((), ()))
    if steps is not None:
        both = lax.dot_general(own, keys, along, preferred_element_type=jnp.int32)
        scores = _joined(both) * steps
    else:
        scores = lax.dot_general(own, keys.astype(own.dtype), along, preferred_element_type=jnp.float32)
    return scores if scale is None else scores * scale


def _weighted(plan: Plan, weights: Array, values: Array, scale: Any, dtype: Any) -> Array:
    """Sums `[g, h]` of values, or their codes, by weights `[g, t]`."""
    weights = weights if scale is None else weights * scale
    along = (((1,), (1 if plan.turned else 0,)), ((), ()))
    if values.dtype == jnp.int8:
        parts, steps = _in_two_parts(weights)
        return _joined(lax.dot_general(parts, values, along, preferred_element_type=jnp.int32)) * steps
    values = values.astype(dtype) if scale is not None else values
    return lax.dot_general(weights.astype(values.dtype), values, along, preferred_element_type=jnp.float32)


def _in_two_parts(x: Array) -> tuple[Array, Array]:
    """Numbers `[g, m]` as whole ones in steps `[g, 1]` of a 254th of a 127th of a row's largest: high parts, and below
    them low ones, `(254 high + low) step`."""
    step = jnp.max(jnp.abs(x), axis=1, keepdims=True) * (1 / (127 * 254))
    number = jnp.round(x * (1 / jnp.where(step == 0.0, 1.0, step)))
    high = jnp.round(number * (1 / 254))
    return jnp.concatenate([high, number - 254 * high], axis=0).astype(jnp.int32).astype(jnp.int8), step


def _joined(both: Array) -> Array:
    group = both.shape[0] // 2
    return 254.0 * both[:group].astype(jnp.float32) + both[group:].astype(jnp.float32)


def _only_before(plan: Plan, values: Array, end: Any) -> Array:
    place = lax.broadcasted_iota(jnp.int32, values.shape, 1 if plan.turned else 0)
    return jnp.where(place < end, values, jnp.zeros_like(values))
