# SPDX-License-Identifier: Apache-2.0
"""What kernels for one new token a row share: what they serve, a mesh around them, and a derivative."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.kernels.decode_attention import reference
from jaxpost.kernels.decode_attention.cache import Cached
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.shard import on_each, ways


def check(q: Array, k: Array, cached: Cached) -> None:
    """Raises `Unsupported` for what no kernel here serves."""
    if q.shape[1] != 1:
        raise Unsupported(f"serves one new token a row, not {q.shape[1]}")
    pieces = ways("k")
    if k.shape[2] % pieces and not q.shape[2] % pieces:
        raise Unsupported(f"{k.shape[2]} key/value heads cannot be cut {pieces} ways like their query heads")
    if cached.k.dtype != cached.v.dtype or (cached.k_scale is None) != (cached.v_scale is None):
        raise Unsupported("keys and values are stored in different ways")


def served(
    kernel: Callable[[Array, Array, Array, Cached], Array],
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    cached: Cached,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Float[Array, "b s n h"]:
    """The kernel on every device's own rows and heads, with the derivative of the reference."""
    scales = None if cached.k_scale is None else "l b k t"
    entries = Cached("l b k t h", "l b k t h", "b", "b", scales, scales, "")
    letters = ("b s n h", "b s k h", "b s k h", entries)
    spread = on_each(kernel, "b n k", ("h", q.shape[3]), letters, "b s n h", checked=False)

    @jax.custom_vjp
    def run(q: Array, k: Array, v: Array, cached: Cached) -> Array:
        return spread(q, k, v, cached)

    def forward(*inputs: Any) -> tuple[Array, Any]:
        return run(*inputs), inputs

    def backward(inputs: Any, gradient: Array) -> Any:
        def plain(q: Array, k: Array, v: Array, cached: Cached) -> Array:
            return reference.decode_attention(q, k, v, cached, window, scale, cap)

        return jax.vjp(plain, *inputs)[1](gradient)

    run.defvjp(forward, backward)
    return run(q, k, v, cached.replace(layer=jnp.int32(cached.layer)))  # pyright: ignore[reportAttributeAccessIssue]


def sizes(cached: Cached) -> dict[str, Any]:
    """What tunables depend on, of the arrays that one device has."""
    _, batch, kv_heads, places, size = cached.k.shape
    return {"b": batch, "k": kv_heads, "t": places, "h": size, "kv": cached.k.dtype.name}


def seen(cached: Cached, window: int | None) -> tuple[Int[Array, "b"], Int[Array, "b"]]:
    """Of each row the first place of the ring that the new token sees, and how many it sees from there on."""
    count = cached.count.astype(jnp.int32)
    number = count if window is None else jnp.minimum(count, window - 1)
    return (cached.start.astype(jnp.int32) + count - number) % cached.k.shape[3], number


def blocks_of(cached: Cached, window: int | None, block: int) -> Int[Array, "b c"]:
    """Of each row, what a kernel that walks over the ring in blocks must know: start and number of the places that are
    seen, the block that the first is in, in how many blocks places are seen, and the layer. Blocks follow each other,
    behind the last one the first."""
    (start, number), places = seen(cached, window), cached.k.shape[3]
    whole = -(-places // block)
    end = start + number - 1
    first, last = start // block, (end % places) // block
    wrapped = jnp.where(last >= first, whole, whole - first + last + 1)
    blocks = jnp.where(number == 0, 0, jnp.where(end < places, last - first + 1, wrapped))
    return jnp.stack([start, number, first, blocks, jnp.broadcast_to(jnp.int32(cached.layer), start.shape)], axis=1)
