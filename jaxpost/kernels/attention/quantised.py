# SPDX-License-Identifier: Apache-2.0
"""Attention in 8-bit integers on TPUs, for reading prompts: not exact, so it is used only where it is asked for.

Both products are of integers (SageAttention, https://arxiv.org/abs/2410.02367): queries have a scale each, keys, less
their mean, one for each block, values, less their mean, one for each channel; the softmax's weights, between 0 and the
largest so far, are rounded to 127ths of it, and their sum is taken before. Of normal random numbers the result is off
by 1 to 2 % of its norm (bfloat16: 0.3 %), by 3 % where scores are three times as large; the nano model's next tokens
by a divergence of 5e-5 nats on average, 0.02 at most.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.kernels.attention import reference
from jaxpost.kernels.attention.blocks import LANES, dividing, fitting, padded, unit
from jaxpost.kernels.devices import check_tpu
from jaxpost.kernels.dispatch import Unsupported, interpreted
from jaxpost.kernels.tuning import tuned
from jaxpost.shard import on_each, ways

ROOM = 48 * 2**20
"""Bytes of fast memory for a row's keys and values, of one head and of the next, and for their codes."""


@dataclass(frozen=True)
class Blocks:
    """Queries and keys in a block; keys are computed half a block at a time."""

    q: int = 512
    kv: int = 512


def attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    rows: Any,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Float[Array, "b s n h"]:
    """Causal attention within segments with both products in 8-bit integers (SageAttention,
    https://arxiv.org/abs/2410.02367).

    A query sees the keys from its segment's start (its place less its position) to itself, so segments' tokens must
    stand next to each other: the number of segments must be bounded (`rows.most`). Gradients are the reference's.
    """
    check_tpu()
    check(q.shape[1], q.shape[-1], rows.most, cap)
    blocks = tuned("attention", "quantised", {"s": q.shape[1], "h": q.shape[-1]}, Blocks())
    return differentiable(q, k, v, rows, window, scale, blocks, interpreted())


def check(tokens: int, size: int, most: int | None, cap: float | None) -> None:
    """Raises `Unsupported` for what the kernel cannot serve, or what it would not serve right."""
    if most is None:
        raise Unsupported("the number of segments in a row is not known, so padding may stand within one")
    if cap is not None:
        raise Unsupported("does not squash scores: a capped score depends on the mean that is taken from the keys")
    if size % 32 or not 64 <= size <= 256:
        raise Unsupported(f"head size {size} is not a multiple of 32 from 64 to 256")
    if 10 * tokens * size > ROOM:
        raise Unsupported(f"keys and values of {tokens} tokens do not fit into a TPU's fast memory")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def differentiable(
    q: Array, k: Array, v: Array, rows: Any, window: int | None, scale: float, blocks: Blocks, interpret: bool = False
) -> Array:
    """The kernel's values, and the reference's gradients, as if nothing had been rounded."""
    return spread(q, k, v, rows, window, scale, blocks, interpret)


def _forward(
    q: Array, k: Array, v: Array, rows: Any, window: int | None, scale: float, blocks: Blocks, interpret: bool
) -> tuple[Array, Any]:
    return spread(q, k, v, rows, window, scale, blocks, interpret), (q, k, v, rows)


def _backward(window: int | None, scale: float, blocks: Blocks, interpret: bool, kept: Any, cotangent: Array) -> Any:
    q, k, v, rows = kept
    _, pull = jax.vjp(lambda q, k, v: reference.attention(q, k, v, rows, window, scale, None), q, k, v)
    return *pull(cotangent), None


differentiable.defvjp(_forward, _backward)


def spread(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    rows: Any,
    window: int | None,
    scale: float,
    blocks: Blocks,
    interpret: bool = False,
) -> Float[Array, "b s n h"]:
    """The kernel on every device's own rows and heads."""

    def local(q: Array, k: Array, v: Array, segments: Array, positions: Array) -> Array:
        return attend(q, k, v, segments, positions, window, scale, blocks, interpret)

    k, v = (dividing(x, q.shape[2], ways("n")) for x in (k, v))
    letters = ("b s n h", "b s k h", "b s k h", "b s", "b s")
    run = on_each(local, "b n k", ("h", q.shape[-1]), letters, "b s n h", checked=False)
    return run(q, k, v, rows.segments, rows.positions)


def attend(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segments: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    window: int | None,
    scale: float,
    blocks: Blocks,
    interpret: bool = False,
) -> Float[Array, "b s n h"]:
    """The kernel on one device. Tokens are padded to whole blocks, as segment 0."""
    from jaxpost.kernels.attention import quantised_kernel as kernel

    tokens, sizes = q.shape[1], evened(q.shape[1], blocks)
    q, k, v, segments, positions = (padded(x, math.lcm(sizes.q, sizes.kv)) for x in (q, k, v, segments, positions))
    real = segments > 0
    starts = seen_from(positions, window)
    first, clear = kernel.runs(starts, real, sizes.q, sizes.kv)
    q, k, v = jnp.transpose(q, (0, 2, 3, 1)), jnp.swapaxes(k, 1, 2), jnp.transpose(v, (0, 2, 3, 1))
    lengths = jnp.sum(real, axis=1, dtype=jnp.int32)
    out = kernel.run(q, k, v, starts, first, clear, lengths, scale, sizes.q, sizes.kv, interpret)
    return jnp.swapaxes(out, 1, 2)[:, :tokens]


def evened(tokens: int, blocks: Blocks) -> Blocks:
    """Blocks for rows of that many tokens: at most as large as asked for, both dividing the padded length."""
    whole = unit(tokens, max(blocks.q, blocks.kv), 2 * LANES)
    return Blocks(fitting(blocks.q, whole), fitting(blocks.kv, whole, 2 * LANES))


def seen_from(positions: Int[Array, "b s"], window: int | None) -> Int[Array, "b s"]:
    """The first place that the query at each place sees."""
    places = jnp.broadcast_to(jnp.arange(positions.shape[1], dtype=jnp.int32), positions.shape)
    starts = places - positions
    return jnp.maximum(starts if window is None else jnp.maximum(starts, places - window + 1), 0)
