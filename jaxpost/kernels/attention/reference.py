# SPDX-License-Identifier: Apache-2.0
"""Attention in plain jnp: always right, always last."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Bool, Float


def attention(
    q: Array, k: Array, v: Array, rows: Any, cached: Any, window: int | None, scale: float, cap: float | None
) -> Array:
    """Scores against cached and new keys are kept apart until one softmax over both, so that a cache is only read:
    joining it to the new keys would copy all of it for every token."""
    batch, length, heads, size = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, size)
    blocks = [(k, v, rows)] if cached is None else [(cached.k, cached.v, cached), (k, v, rows)]
    scores = [_scores(q, keys, _visible(rows, place, window), scale, cap) for keys, _, place in blocks]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    out, start = jnp.zeros(q.shape, jnp.float32), 0
    for _, values, _ in blocks:
        part = weights[..., start : start + values.shape[1]]
        out += jnp.einsum("bkgst,btkh->bskgh", part.astype(values.dtype), values, preferred_element_type=jnp.float32)
        start += values.shape[1]
    return out.reshape(batch, length, heads, size).astype(v.dtype)


def _visible(queries: Any, keys: Any, window: int | None) -> Bool[Array, "b s t"]:
    same = queries.segments[:, :, None] == keys.segments[:, None, :]
    back = queries.positions[:, :, None] - keys.positions[:, None, :]
    return same & (back >= 0) if window is None else same & (back >= 0) & (back < window)


def _scores(
    q: Float[Array, "b s k g h"], keys: Float[Array, "b t k h"], visible: Array, scale: float, cap: float | None
) -> Array:
    scores = scale * jnp.einsum("bskgh,btkh->bkgst", q, keys, preferred_element_type=jnp.float32)
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    # Finite, so that a query that sees nothing (padding) gets an even average instead of NaN.
    return jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
