# SPDX-License-Identifier: Apache-2.0
"""How keys and values of earlier tokens lie in memory."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Bool, Float, Int

KV = Literal["model", "int8", "fp8"]
"""How entries are stored: in the type that the model computes in, or in eight bits with a scale for each token and
head: as whole numbers (error of half a 127th of the head's largest) or as floats of three bits behind the point (a 16th
of each number)."""

_CODES: Mapping[str, tuple[Any, float]] = {"int8": (jnp.int8, 127.0), "fp8": (jnp.float8_e4m3fn, 448.0)}


class Entries(NamedTuple):
    """Keys and values as they are stored, `[..., h]`, and where they are codes their scales `[...]` in float32."""

    k: Any
    v: Any
    k_scale: Any = None
    v_scale: Any = None


@struct.dataclass
class Cached:
    """A ring of keys and values of earlier tokens: one `layer` of a stack of them. The stack comes whole, since a slice
    of it would have to be copied for a kernel.

    k, v `[l, b, k, t, h]`: numbers, or codes with scales k_scale, v_scale `[l, b, k, t]` in float32 (else None). Row
    b's visible places are the `count[b]` from `start[b]` on, modulo t, oldest first; they are the tokens directly
    before the new ones.
    """

    k: Any
    v: Any
    start: Any
    count: Any
    k_scale: Any = None
    v_scale: Any = None
    layer: Any = 0

    @classmethod
    def of(cls, stack: Entries, start: Any, count: Any, layer: Any = 0) -> "Cached":
        return cls(stack.k, stack.v, start, count, stack.k_scale, stack.v_scale, layer)

    def ring(self) -> Entries:
        """The layer's own entries, out of the stack."""
        stack = Entries(self.k, self.v, self.k_scale, self.v_scale)
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, self.layer, keepdims=False), stack)

    def age(self) -> Int[Array, "b t"]:
        """How far back each place is from the first new token: 1 is the one before it; 0 or less is empty."""
        places = self.k.shape[3]
        place = jnp.arange(places, dtype=jnp.int32)[None]
        return self.count[:, None] - (place - self.start[:, None]) % places


def bytes_per_entry(kv: KV, head_size: int, dtype: Any) -> int:
    """What a token's key, or value, takes in one head, for a model that computes in `dtype`."""
    return head_size + 4 if kv in _CODES else head_size * jnp.dtype(dtype).itemsize


def empty(kv: KV, shape: tuple[int, ...], dtype: Any) -> Entries:
    """Entries `[..., h]` of nothing."""
    if kv == "model":
        return Entries(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    codes, scales = jnp.zeros(shape, _CODES[kv][0]), jnp.zeros(shape[:-1], jnp.float32)
    return Entries(codes, codes, scales, scales)


def stored(k: Float[Array, "*b h"], v: Float[Array, "*b h"], kv: KV) -> Entries:
    """Keys and values as they are stored."""
    if kv == "model":
        return Entries(k, v)
    (k, k_scale), (v, v_scale) = (encode(x, kv) for x in (k, v))
    return Entries(k, v, k_scale, v_scale)


def encode(x: Float[Array, "*b h"], kv: KV) -> tuple[Array, Float[Array, "*b"]]:
    """Codes in eight bits, and the scale of each token and head: `x` is about codes times scale."""
    dtype, most = _CODES[kv]
    scale = jnp.max(jnp.abs(x), axis=-1).astype(jnp.float32) / most
    codes = x.astype(jnp.float32) / jnp.where(scale == 0, 1.0, scale)[..., None]
    return (jnp.round(codes) if jnp.issubdtype(dtype, jnp.integer) else codes).astype(dtype), scale


def visible(cached: Cached, queries: int, window: int | None) -> Bool[Array, "b s t"]:
    """Which places of the cache each of the new tokens sees."""
    age = cached.age()[:, None]
    back = age + jnp.arange(queries, dtype=jnp.int32)[None, :, None]
    return (age > 0) if window is None else (age > 0) & (back < window)
