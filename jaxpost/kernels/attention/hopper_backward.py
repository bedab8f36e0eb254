# SPDX-License-Identifier: Apache-2.0
"""The kernels for Hopper that make the gradients; see `hopper.py`.

With `p` the weights, made again from scores and what rows were divided by, and `do` the cotangent: `dv = p^T do`,
`ds = p (do v^T - sum(do out))`, `dq = ds k` and `dk = ds^T q`, the last two times the scale. In the second kernel all
of that lies transposed, keys along the rows, so that weights are operands as they come out of registers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from jaxpost.arrays import Array, Float, Int
from jaxpost.kernels.attention import hopper
from jaxpost.kernels.attention.hopper import OF_COLUMN, OF_ROW, PAIR, ROWS, SPAN, Plan

plgpu: Any = mosaic_gpu


@functools.partial(jax.jit, static_argnums=0)
def of_queries(
    plan: Plan,
    start: Int[Array, "b s"],
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    out: Float[Array, "b s n h"],
    total: Float[Array, "b n s"],
    cotangent: Float[Array, "b s n h"],
) -> tuple[Float[Array, "b s n h"], Float[Array, "b n s"]]:
    """dq, and each query's `sum(do out)`."""
    b, s, n, h = q.shape
    keys, stages = plan.tiles.keys_dq, plan.tiles.stages_dq
    return hopper.kernel(
        functools.partial(_of_queries, plan),
        "attention_dq",
        (n // plan.heads, s // plan.queries, b),
        (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(total.shape, jnp.float32)),
        dict(
            q_tile=hopper.swizzled((PAIR, ROWS, h), q.dtype),
            out_tile=hopper.swizzled((PAIR, ROWS, h), q.dtype),
            do_tile=hopper.swizzled((PAIR, ROWS, h), q.dtype),
            k_tile=hopper.swizzled((stages, keys, h), k.dtype),
            v_tile=hopper.swizzled((stages, keys, h), v.dtype),
            start_tile=plgpu.SMEM((PAIR, ROWS), jnp.int32),
            total_tile=plgpu.SMEM((PAIR, ROWS), jnp.float32),
            inner_tile=plgpu.SMEM((PAIR, ROWS), jnp.float32),
            begun=plgpu.Barrier(num_arrivals=5, num_barriers=PAIR),
            full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            empty=plgpu.Barrier(num_arrivals=PAIR, num_barriers=stages),
        ),
    )(start, q, k, v, out, total, cotangent)


def _of_queries(
    plan: Plan, start: Any, q: Any, k: Any, v: Any, out: Any, total: Any, do: Any, dq: Any, inner: Any,
    *, q_tile: Any, out_tile: Any, do_tile: Any, k_tile: Any, v_tile: Any, start_tile: Any, total_tile: Any,
    inner_tile: Any, begun: Any, full: Any, empty: Any,
) -> None:  # fmt: skip
    row, keys, stages = lax.axis_index("row"), plan.tiles.keys_dq, plan.tiles.stages_dq
    low, high = plan.seen(start, keys)

    def fetch(number: Any, slot: Any) -> None:
        at = row, pl.ds((low + number) * keys, keys), plan.shared()
        plgpu.copy_gmem_to_smem(k.at[at], k_tile.at[slot], full.at[slot])
        plgpu.copy_gmem_to_smem(v.at[at], v_tile.at[slot], full.at[slot])

    def multiply(group: Any) -> None:
        head, query = plan.own()
        rows, own = pl.ds(query, ROWS), begun.at[group]
        plgpu.copy_gmem_to_smem(q.at[row, rows, head], q_tile.at[group], own)
        plgpu.copy_gmem_to_smem(do.at[row, rows, head], do_tile.at[group], own)
        plgpu.copy_gmem_to_smem(start.at[row, rows], start_tile.at[group], own)
        plgpu.copy_gmem_to_smem(total.at[row, head, rows], total_tile.at[group], own)
        plgpu.copy_gmem_to_smem(out.at[row, rows, head], out_tile.at[group], own)
        plgpu.barrier_wait(own)
        first, logarithm = (plgpu.load(tile.at[group], layout=OF_ROW) for tile in (start_tile, total_tile))
        seen = hopper.Seen(first, hopper.places(query), start[row, query + (ROWS - 1)], query)
        result, cotangent = (
            plgpu.load(tile.at[group], layout=hopper.SCORES).astype(jnp.float32) for tile in (out_tile, do_tile)
        )
        mean = jnp.sum(result * cotangent, axis=1)
        inner_tile[group] = mean
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(inner_tile.at[group], inner.at[row, head, rows])
        shape = (ROWS, keys)
        logarithm, mean = (hopper.along(x, shape) for x in (logarithm, mean))

        def step(tile: Any, sums: Any, only: Any) -> Any:
            slot = lax.rem(tile - low, jnp.int32(stages))
            plgpu.barrier_wait(full.at[slot])

            def products(scores: Any, dweights: Any) -> tuple[Array, Array]:
                plgpu.wgmma(scores, q_tile.at[group], k_tile.at[slot].transpose((1, 0)))
                plgpu.wgmma(dweights, do_tile.at[group], v_tile.at[slot].transpose((1, 0)))
                return scores[...], dweights[...]

            accumulator = plgpu.ACC(shape, jnp.float32)
            scores, dweights = pl.run_scoped(products, accumulator, accumulator)
            only = functools.partial(only, tile=tile)
            _, dscores = plan.gradient(scores, dweights, logarithm, mean, only)

            def add(sums: Any) -> None:
                plgpu.wgmma(sums, dscores.astype(q.dtype), k_tile.at[slot])

            sums = pl.run_state(add)(plgpu.ACC.init(sums))
            plgpu.barrier_arrive(empty.at[slot])
            return sums

        sums = seen.walk(low, high, keys, step, hopper.zeros(ROWS, plan.size))
        q_tile[group] = (sums * plan.scale).astype(dq.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_tile.at[group], dq.at[row, rows, head])
        plgpu.wait_smem_to_gmem(0)

    hopper.roles(functools.partial(hopper.fetched, high - low, stages, fetch, empty), multiply)


@functools.partial(jax.jit, static_argnums=0)
def of_keys_and_values(
    plan: Plan,
    stop: Int[Array, "b s"],
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    total: Float[Array, "b n s"],
    cotangent: Float[Array, "b s n h"],
    inner: Float[Array, "b n s"],
) -> tuple[Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """dk and dv. `stop` says behind which query each key is no longer seen; like `start`, it never falls."""
    b, s, heads, h = k.shape
    queries, stages = plan.tiles.queries_dkv, plan.tiles.stages_dkv
    return hopper.kernel(
        functools.partial(_of_keys_and_values, plan),
        "attention_dkv",
        (heads, s // SPAN, b),
        (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)),
        dict(
            k_tile=hopper.swizzled((PAIR, ROWS, h), k.dtype),
            v_tile=hopper.swizzled((PAIR, ROWS, h), v.dtype),
            q_tile=hopper.swizzled((stages, queries, h), q.dtype),
            do_tile=hopper.swizzled((stages, queries, h), q.dtype),
            stop_tile=plgpu.SMEM((PAIR, ROWS), jnp.int32),
            total_tile=plgpu.SMEM((stages, queries), jnp.float32),
            inner_tile=plgpu.SMEM((stages, queries), jnp.float32),
            begun=plgpu.Barrier(num_arrivals=3, num_barriers=PAIR),
            full=plgpu.Barrier(num_arrivals=4, num_barriers=stages),
            empty=plgpu.Barrier(num_arrivals=PAIR, num_barriers=stages),
        ),
    )(stop, q, k, v, total, cotangent, inner)


def _of_keys_and_values(
    plan: Plan, stop: Any, q: Any, k: Any, v: Any, total: Any, do: Any, inner: Any, dk: Any, dv: Any,
    *, k_tile: Any, v_tile: Any, q_tile: Any, do_tile: Any, stop_tile: Any, total_tile: Any, inner_tile: Any,
    begun: Any, full: Any, empty: Any,
) -> None:  # fmt: skip
    row, head = lax.axis_index("row"), lax.axis_index("head")
    queries, stages = plan.tiles.queries_dkv, plan.tiles.stages_dkv
    key = lax.axis_index("tile") * SPAN
    low = lax.div(key, jnp.int32(queries))
    count = lax.div(stop[row, key + (SPAN - 1)] + (queries - 1), jnp.int32(queries)) - low

    def fetch(number: Any, slot: Any) -> None:
        reader = head * plan.group + lax.div(number, count)
        rows = pl.ds((low + lax.rem(number, count)) * queries, queries)
        plgpu.copy_gmem_to_smem(q.at[row, rows, reader], q_tile.at[slot], full.at[slot])
        plgpu.copy_gmem_to_smem(do.at[row, rows, reader], do_tile.at[slot], full.at[slot])
        plgpu.copy_gmem_to_smem(total.at[row, reader, rows], total_tile.at[slot], full.at[slot])
        plgpu.copy_gmem_to_smem(inner.at[row, reader, rows], inner_tile.at[slot], full.at[slot])

    def multiply(group: Any) -> None:
        first = key + group * ROWS
        rows, own = pl.ds(first, ROWS), begun.at[group]
        plgpu.copy_gmem_to_smem(k.at[row, rows, head], k_tile.at[group], own)
        plgpu.copy_gmem_to_smem(v.at[row, rows, head], v_tile.at[group], own)
        plgpu.copy_gmem_to_smem(stop.at[row, rows], stop_tile.at[group], own)
        plgpu.barrier_wait(own)
        last = plgpu.load(stop_tile.at[group], layout=OF_ROW) - 1
        seen = hopper.Seen(hopper.places(first), last, first + (ROWS - 1), stop[row, first] - 1)
        shape = (ROWS, queries)

        def step(tile: Any, carry: Any, only: Any, reader: Any) -> Any:
            slot = lax.rem(reader * count + (tile - low), jnp.int32(stages))
            plgpu.barrier_wait(full.at[slot])

            def products(scores: Any, dweights: Any) -> tuple[Array, Array]:
                plgpu.wgmma(scores, k_tile.at[group], q_tile.at[slot].transpose((1, 0)))
                plgpu.wgmma(dweights, v_tile.at[group], do_tile.at[slot].transpose((1, 0)))
                return scores[...], dweights[...]

            accumulator = plgpu.ACC(shape, jnp.float32)
            scores, dweights = pl.run_scoped(products, accumulator, accumulator)
            logarithm, mean = (
                hopper.down(plgpu.load(tile.at[slot], layout=OF_COLUMN), shape) for tile in (total_tile, inner_tile)
            )
            only = functools.partial(only, tile=tile)
            weights, dscores = plan.gradient(scores, dweights, logarithm, mean, only)

            def add(sums: Any) -> None:
                dk, dv = sums
                plgpu.wgmma(dv, weights.astype(q.dtype), do_tile.at[slot])
                plgpu.wgmma(dk, dscores.astype(q.dtype), q_tile.at[slot])

            carry = pl.run_state(add)(tuple(plgpu.ACC.init(sums) for sums in carry))
            plgpu.barrier_arrive(empty.at[slot])
            return carry

        def each(reader: Any, carry: Any) -> Any:
            return seen.walk(low, low + count, queries, functools.partial(step, reader=reader), carry)

        none = hopper.zeros(ROWS, plan.size)
        k_sums, v_sums = lax.fori_loop(0, plan.group, each, (none, none))
        k_tile[group] = (k_sums * plan.scale).astype(dk.dtype)
        v_tile[group] = v_sums.astype(dv.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(k_tile.at[group], dk.at[row, rows, head])
        plgpu.copy_smem_to_gmem(v_tile.at[group], dv.at[row, rows, head])
        plgpu.wait_smem_to_gmem(0)

    hopper.roles(functools.partial(hopper.fetched, plan.group * count, stages, fetch, empty), multiply)
