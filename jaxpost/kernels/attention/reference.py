# SPDX-License-Identifier: Apache-2.0
"""Attention in plain jnp: always right, always last."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Bool, Float


def attention(
    q: Array, k: Array, v: Array, rows: Any, cached: Any, window: int | None, scale: float, cap: float | None
) -> Array:
    """One softmax over the scores against cached and new keys."""
    parts = [(k, v, rows)]
    if cached is not None:
        parts.insert(0, (jnp.swapaxes(cached.k, 1, 2), jnp.swapaxes(cached.v, 1, 2), cached))
    own = grouped(q, k.shape[2])
    scores = [
        squashed(
            jnp.einsum("bskgh,btkh->bkgst", own, keys, preferred_element_type=jnp.float32),
            visible(rows, place, window), scale, cap,
        )
        for keys, _, place in parts
    ]  # fmt: skip
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    out, start = jnp.zeros(own.shape, jnp.float32), 0
    for _, values, _ in parts:
        part = weights[..., start : start + values.shape[1]]
        out += jnp.einsum("bkgst,btkh->bskgh", part.astype(values.dtype), values, preferred_element_type=jnp.float32)
        start += values.shape[1]
    return out.reshape(q.shape).astype(v.dtype)


def grouped(q: Float[Array, "b s n h"], kv_heads: int) -> Float[Array, "b s k g h"]:
    """Queries by the key/value head that serves them."""
    return q.reshape(*q.shape[:2], kv_heads, q.shape[2] // kv_heads, q.shape[3])


def visible(queries: Any, keys: Any, window: int | None) -> Bool[Array, "b s t"]:
    """Which keys a query sees: those of its segment, up to its own position, within the window."""
    same = queries.segments[:, :, None] == keys.segments[:, None, :]
    back = queries.positions[:, :, None] - keys.positions[:, None, :]
    return same & (back >= 0) if window is None else same & (back >= 0) & (back < window)


def squashed(scores: Float[Array, "b k g s t"], visible: Array, scale: float, cap: float | None) -> Array:
    """Scaled and capped scores, and the least there is for what is not seen: finite, so that a query that sees nothing
    (padding) gets an even average instead of NaN."""
    scores = scale * scores
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    return jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
