# SPDX-License-Identifier: Apache-2.0
"""The forward kernel for Hopper: softmax with a running maximum; see `hopper.py`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from jaxpost.arrays import Array, Float, Int
from jaxpost.kernels.attention import hopper
from jaxpost.kernels.attention.hopper import OF_ROW, PAIR, ROWS, Plan

plgpu: Any = mosaic_gpu

LOW = -1e30
"""Below any score, and finite: the difference of two of them is a number."""


# Traced, lowered and compiled once for each shape, however many layers have it.
@functools.partial(jax.jit, static_argnums=0)
def forwards(
    plan: Plan,
    start: Int[Array, "b s"],
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
) -> tuple[Float[Array, "b s n h"], Float[Array, "b n s"]]:
    """Attention to the keys from `start` up to each query's own, and the logarithms (to base two) of what its weights
    were divided by. `start` never falls along a row; rows are whole spans of 128."""
    b, s, n, h = q.shape
    keys, stages = plan.tiles.keys, plan.tiles.stages
    return hopper.kernel(
        functools.partial(_forwards, plan),
        "attention",
        (n // plan.heads, s // plan.queries, b),
        (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, n, s), jnp.float32)),
        dict(
            q_tile=hopper.swizzled((PAIR, ROWS, h), q.dtype),
            k_tile=hopper.swizzled((stages, keys, h), k.dtype),
            v_tile=hopper.swizzled((stages, keys, h), v.dtype),
            start_tile=plgpu.SMEM((PAIR, ROWS), jnp.int32),
            total_tile=plgpu.SMEM((PAIR, ROWS), jnp.float32),
            begun=plgpu.Barrier(num_arrivals=2, num_barriers=PAIR),
            k_full=plgpu.Barrier(num_barriers=stages),
            v_full=plgpu.Barrier(num_barriers=stages),
            empty=plgpu.Barrier(num_arrivals=PAIR, num_barriers=stages),
        ),
    )(start, q, k, v)


def _forwards(
    plan: Plan, start: Any, q: Any, k: Any, v: Any, out: Any, total: Any,
    *, q_tile: Any, k_tile: Any, v_tile: Any, start_tile: Any, total_tile: Any,
    begun: Any, k_full: Any, v_full: Any, empty: Any,
) -> None:  # fmt: skip
    row, keys, stages = lax.axis_index("row"), plan.tiles.keys, plan.tiles.stages
    low, high = plan.seen(start, keys)

    def fetch(number: Any, slot: Any) -> None:
        at = row, pl.ds((low + number) * keys, keys), plan.shared()
        plgpu.copy_gmem_to_smem(k.at[at], k_tile.at[slot], k_full.at[slot])
        plgpu.copy_gmem_to_smem(v.at[at], v_tile.at[slot], v_full.at[slot])

    def multiply(group: Any) -> None:
        head, query = plan.own()
        own = q_tile.at[group]
        plgpu.copy_gmem_to_smem(q.at[row, pl.ds(query, ROWS), head], own, begun.at[group])
        plgpu.copy_gmem_to_smem(start.at[row, pl.ds(query, ROWS)], start_tile.at[group], begun.at[group])
        plgpu.barrier_wait(begun.at[group])
        first = plgpu.load(start_tile.at[group], layout=OF_ROW)
        seen = hopper.Seen(first, hopper.places(query), start[row, query + (ROWS - 1)], query)
        shape = (ROWS, keys)

        def place(tile: Any) -> Any:
            return lax.rem(tile - low, jnp.int32(stages))

        def against(tile: Any, products: Any) -> None:
            plgpu.barrier_wait(k_full.at[place(tile)])
            plgpu.wgmma(products, own, k_tile.at[place(tile)].transpose((1, 0)))

        def weighted(tile: Any, carry: Any, only: Any) -> Any:
            products, (sums, most, weight) = carry
            scores, factor, _ = plan.squashed(products)
            scores = only(scores, tile)
            larger = jnp.maximum(most, jnp.max(scores, axis=1) * factor)
            fading = jnp.exp2(most - larger)
            weights = jnp.exp2(scores * factor - hopper.along(larger, shape))
            weight = weight * fading + jnp.sum(weights, axis=1)
            return weights.astype(v.dtype), (sums * hopper.along(fading, sums.shape), larger, weight)

        def of_values(tile: Any, weights: Array, sums: Any) -> None:
            plgpu.barrier_wait(v_full.at[place(tile)])
            plgpu.wgmma(sums, weights, v_tile.at[place(tile)])

        def step(tile: Any, carry: Any, only: Any) -> Any:
            """The tile's values, together with the scores of the one behind it."""
            weights, (sums, most, weight) = weighted(tile, carry, only)

            def both(refs: Any) -> None:
                products, sums = refs
                against(tile + 1, products)
                of_values(tile, weights, sums)

            products, sums = pl.run_state(both)((plgpu.ACC.init(hopper.zeros(*shape)), plgpu.ACC.init(sums)))
            plgpu.barrier_arrive(empty.at[place(tile)])
            return products, (sums, most, weight)

        def begin(products: Any) -> Array:
            against(low, products)
            return products[...]

        none = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), OF_ROW)
        products = pl.run_scoped(begin, plgpu.ACC(shape, jnp.float32))
        carry = products, (hopper.zeros(ROWS, plan.size), none + LOW, none)
        carry = seen.walk(low, high - 1, keys, step, carry)
        weights, (sums, most, weight) = weighted(high - 1, carry, seen.only(keys))
        sums = pl.run_state(functools.partial(of_values, high - 1, weights))(plgpu.ACC.init(sums))
        plgpu.barrier_arrive(empty.at[place(high - 1)])
        own[...] = (sums * hopper.along(1.0 / weight, sums.shape)).astype(out.dtype)
        total_tile[group] = most + jnp.log2(weight)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own, out.at[row, pl.ds(query, ROWS), head])
        plgpu.copy_smem_to_gmem(total_tile.at[group], total.at[row, head, pl.ds(query, ROWS)])
        plgpu.wait_smem_to_gmem(0)

    hopper.roles(functools.partial(hopper.fetched, high - low, stages, fetch, empty), multiply)
