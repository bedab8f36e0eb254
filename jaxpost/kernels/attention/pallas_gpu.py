# SPDX-License-Identifier: Apache-2.0
"""Attention by Mosaic kernels for Hopper GPUs; see `hopper.py`.

What they cost and keep does not depend on how many segments a row may have. On an H200 (jax 0.11, bf16), microseconds
forwards and backwards, by them and by cuDNN, where rows may have 64 segments:

    8 x 2048, 32 heads over 8 of 64      8 segments 460, 2383      one  1514, 1554
    4 x 4096, 32 heads over 8 of 128     8 segments 844, 4081      one  3826, 3865
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpost.arrays import Array, Float, Int
from jaxpost.kernels.attention.blocks import dividing
from jaxpost.kernels.attention.reference import KEPT
from jaxpost.kernels.devices import check_hopper
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.kernels.tuning import tuned
from jaxpost.shard import on_each, ways

WHOLE = 128
"""Tokens of a row come by so many."""


def attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    rows: Any,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Float[Array, "b s n h"]:
    check_hopper()
    if rows.most is None:
        raise Unsupported("the number of segments in a row is not known, so padding may stand within one")
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        raise Unsupported(f"computes in 16 bits of one kind, not in {q.dtype}, {k.dtype} and {v.dtype}")
    if q.shape[-1] not in (64, 128):
        raise Unsupported(f"head size {q.shape[-1]} is not 64 or 128")
    if q.shape[1] % WHOLE:
        raise Unsupported(f"{q.shape[1]} tokens are not a multiple of {WHOLE}")
    if scale <= 0:
        raise Unsupported(f"takes scales above zero, not {scale}")
    start, stop = sight(rows.segments, window)

    def local(q: Array, k: Array, v: Array, start: Array, stop: Array) -> Array:
        from jaxpost.kernels.attention.hopper import Plan, Tiles  # here, because jax before 0.11 lacks what it imports

        group, size = q.shape[2] // k.shape[2], q.shape[3]
        tiles = tuned("attention", "pallas_gpu", {"s": q.shape[1], "h": size}, Tiles())
        return attend(Plan(group, size, scale, cap, tiles), q, k, v, start, stop)

    k, v = (dividing(x, q.shape[2], ways("n")) for x in (k, v))
    letters = ("b s n h", "b s k h", "b s k h", "b s", "b s")
    return on_each(local, "b n k", ("h", q.shape[-1]), letters, "b s n h", checked=False)(q, k, v, start, stop)


def sight(segments: Int[Array, "b s"], window: int | None) -> tuple[Int[Array, "b s"], Int[Array, "b s"]]:
    """For each token the place of the first key that it sees, and the place behind the last query that sees it. A
    segment's tokens stand next to each other; padding, which stands behind them, sees itself."""
    place = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    new = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True) | (segments == 0)
    start = lax.cummax(jnp.where(new, place, 0), axis=1)
    last = jnp.pad(new[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    stop = lax.cummin(jnp.where(last, place + 1, segments.shape[1]), axis=1, reverse=True)
    if window is not None and window < segments.shape[1]:
        start, stop = jnp.maximum(start, place - (window - 1)), jnp.minimum(stop, place + window)
    return start, stop


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    plan: Any,
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    start: Int[Array, "b s"],
    stop: Int[Array, "b s"],
) -> Float[Array, "b s n h"]:
    """Attention to the keys from `start` up to a query's own; `stop` is the same told from the keys' side."""
    return _forward(plan, q, k, v, start, stop)[0]


def _forward(plan: Any, q: Array, k: Array, v: Array, start: Array, stop: Array) -> tuple[Array, Any]:
    from jaxpost.kernels.attention.hopper_forward import forwards

    # XLA runs a kernel once more where it can write one copy of its result into a stack of layers; not behind this.
    found = lax.optimization_barrier(forwards(plan, start, q, k, v))
    out, total = (checkpoint_name(x, KEPT) for x in found)
    return out, (q, k, v, start, stop, out, total)


def _backward(plan: Any, kept: Any, cotangent: Array) -> tuple[Array | None, ...]:
    from jaxpost.kernels.attention.hopper_backward import of_keys_and_values, of_queries

    q, k, v, start, stop, out, total = kept
    dq, inner = of_queries(plan, start, q, k, v, out, total, cotangent)
    dk, dv = of_keys_and_values(plan, stop, q, k, v, total, cotangent, inner)
    return dq, dk, dv, None, None


attend.defvjp(_forward, _backward)
