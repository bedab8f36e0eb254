# SPDX-License-Identifier: Apache-2.0
"""Attention of new tokens to a cache and to each other, in XLA: what a step of decoding spends its time on."""

from typing import Any

import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.kernels.attention.reference import grouped, squashed, visible
from jaxpost.kernels.dispatch import Unsupported


def attention(
    q: Array, k: Array, v: Array, rows: Any, cached: Any, window: int | None, scale: float, cap: float | None
) -> Array:
    """The softmax is taken over both parts without joining them, and divided by at the end: the cache is read once, in
    its own type and order (each head's places stand together, so the products are batched matrix products as they
    are), and nothing of its size is written."""
    if cached is None:
        raise Unsupported("is for tokens that see a cache")
    own = grouped(q, k.shape[2])
    far = jnp.einsum("bskgh,bkth->bkgst", own, cached.k, preferred_element_type=jnp.float32)
    near = jnp.einsum("bskgh,btkh->bkgst", own, k, preferred_element_type=jnp.float32)
    far = squashed(far, visible(rows, cached, window), scale, cap)
    near = squashed(near, visible(rows, rows, window), scale, cap)
    most = jnp.maximum(jnp.max(far, axis=-1, keepdims=True), jnp.max(near, axis=-1, keepdims=True))
    far, near = jnp.exp(far - most), jnp.exp(near - most)
    total = jnp.sum(far, axis=-1, keepdims=True) + jnp.sum(near, axis=-1, keepdims=True)
    out = jnp.einsum("bkgst,bkth->bkgsh", far.astype(v.dtype), cached.v, preferred_element_type=jnp.float32)
    out += jnp.einsum("bkgst,btkh->bkgsh", near.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return jnp.moveaxis(out / total, 3, 1).reshape(q.shape).astype(v.dtype)
