# SPDX-License-Identifier: Apache-2.0
"""Attention in plain jnp: always right, always last."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpost.arrays import Array, Bool, Float, everywhere, tied

LEAST = float(jnp.finfo(jnp.float32).min)

KEPT = "attn"
"""The name under which remat policies know attention's result and, where softmaxes are made again from them, the
logarithms of what they were divided by."""


def attention(q: Array, k: Array, v: Array, rows: Any, window: int | None, scale: float, cap: float | None) -> Array:
    own = grouped(q, k.shape[2])
    scores = jnp.einsum("bskgh,btkh->bkgst", own, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(squashed(scores, tied(visible(rows, window), q), scale, cap), axis=-1)
    out = jnp.einsum("bkgst,btkh->bskgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return checkpoint_name(out.reshape(q.shape).astype(v.dtype), KEPT)


def grouped(q: Float[Array, "b s n h"], kv_heads: int) -> Float[Array, "b s k g h"]:
    """Queries by the key/value head that serves them."""
    return q.reshape(*q.shape[:2], kv_heads, q.shape[2] // kv_heads, q.shape[3])


def visible(rows: Any, window: int | None) -> Bool[Array, "b s t"]:
    """Which keys a query sees: those of its segment, up to its own position, within the window."""
    same = rows.segments[:, :, None] == rows.segments[:, None, :]
    back = rows.positions[:, :, None] - rows.positions[:, None, :]
    return same & (back >= 0) if window is None else same & (back >= 0) & (back < window)


def squashed(scores: Float[Array, "b k g s t"], visible: Array, scale: float, cap: float | None) -> Array:
    """Scaled and capped scores, and the least there is for what is not seen: finite, so that a query that sees nothing
    (padding) gets an even average instead of NaN."""
    scores = scale * scores
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    visible = visible[:, None, None]
    return jnp.where(visible, scores, everywhere(LEAST, visible))
