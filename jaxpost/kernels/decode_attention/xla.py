# SPDX-License-Identifier: Apache-2.0
"""Attention over a cache by XLA's own matrix products."""

import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.kernels.attention.reference import grouped, squashed
from jaxpost.kernels.decode_attention.cache import Cached, visible
from jaxpost.kernels.decode_attention.reference import visible_new


def decode_attention(
    q: Array, k: Array, v: Array, cached: Cached, window: int | None, scale: float, cap: float | None
) -> Array:
    """The softmax is taken over both parts without joining them, and divided by at the end: the cache is read once, in
    its own order (each head's places stand together, so the products are batched matrix products as they are), and
    nothing of its size is written."""
    own, old = grouped(q, k.shape[2]), cached.ring()
    far = jnp.einsum("bskgh,bkth->bkgst", own, old.k.astype(q.dtype), preferred_element_type=jnp.float32)
    far = far if old.k_scale is None else far * old.k_scale[:, :, None, None]
    near = jnp.einsum("bskgh,btkh->bkgst", own, k, preferred_element_type=jnp.float32)
    far = squashed(far, visible(cached, q.shape[1], window), scale, cap)
    near = squashed(near, visible_new(q.shape[1], window)[None], scale, cap)
    most = jnp.maximum(jnp.max(far, axis=-1, keepdims=True), jnp.max(near, axis=-1, keepdims=True))
    far, near = jnp.exp(far - most), jnp.exp(near - most)
    total = jnp.sum(far, axis=-1, keepdims=True) + jnp.sum(near, axis=-1, keepdims=True)
    far = far if old.v_scale is None else far * old.v_scale[:, :, None, None]
    far, values = far.astype(v.dtype), old.v.astype(v.dtype)
    out = jnp.einsum("bkgst,bkth->bkgsh", far, values, preferred_element_type=jnp.float32)
    out += jnp.einsum("bkgst,btkh->bkgsh", near.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return jnp.moveaxis(out / total, 3, 1).reshape(q.shape).astype(v.dtype)
