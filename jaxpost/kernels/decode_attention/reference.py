# SPDX-License-Identifier: Apache-2.0
"""Attention over a cache in plain jnp and float32: always right, always last."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.kernels.attention.reference import grouped, squashed
from jaxpost.kernels.decode_attention.cache import Cached, visible


def decode_attention(
    q: Array, k: Array, v: Array, cached: Cached, window: int | None, scale: float, cap: float | None
) -> Array:
    """One softmax over the scores against decoded and new keys."""
    new, old = visible_new(q.shape[1], window)[None], cached.ring()
    keys = jnp.concatenate([_decoded(old.k, old.k_scale), jnp.swapaxes(k, 1, 2).astype(jnp.float32)], axis=2)
    values = jnp.concatenate([_decoded(old.v, old.v_scale), jnp.swapaxes(v, 1, 2).astype(jnp.float32)], axis=2)
    far = visible(cached, q.shape[1], window)
    far = jnp.broadcast_to(far, (far.shape[0], q.shape[1], far.shape[2]))
    seen = jnp.concatenate([far, jnp.broadcast_to(new, (*far.shape[:2], q.shape[1]))], axis=2)
    own = grouped(q, k.shape[2]).astype(jnp.float32)
    scores = squashed(jnp.einsum("bskgh,bkth->bkgst", own, keys), seen, scale, cap)
    out = jnp.einsum("bkgst,bkth->bskgh", jax.nn.softmax(scores, axis=-1), values)
    return out.reshape(q.shape).astype(v.dtype)


def visible_new(queries: int, window: int | None) -> Array:
    """Which of the new tokens each of them sees `[s, s]`: those up to itself, within the window."""
    place = jnp.arange(queries, dtype=jnp.int32)
    back = place[:, None] - place[None, :]
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def _decoded(codes: Array, scale: Array | None) -> Array:
    return codes.astype(jnp.float32) if scale is None else codes.astype(jnp.float32) * scale[..., None]
