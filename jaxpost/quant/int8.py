# SPDX-License-Identifier: Apache-2.0
"""Eight bits a weight, one scale per output channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.params import ParamSpec


@dataclass(frozen=True)
class Int8:
    """Symmetric: `scale = max|w| / 127` over the in axes, `code = round(w / scale)`.

    The error of one weight is at most half a scale. The scale keeps the in axes with size one, so that decoding is
    one broadcast product.
    """

    def of(self, spec: ParamSpec) -> "Int8":
        return self

    def encode(self, w: Array, inner: int, outer: int) -> tuple[Array, Mapping[str, Array]]:
        axes = tuple(range(-inner - outer, -outer))
        w = w.astype(jnp.float32)
        scale = jnp.max(jnp.abs(w), axis=axes, keepdims=True) / 127.0
        codes = jnp.round(w / jnp.where(scale == 0, 1.0, scale)).astype(jnp.int8)
        return codes, {"scale": scale}

    def decode(self, codes: Array, scales: Mapping[str, Array], dtype: Any) -> Array:
        return (codes.astype(jnp.float32) * scales["scale"]).astype(dtype)

    def rows(self, codes: Array, scales: Mapping[str, Array], ids: Array, dtype: Any) -> Array:
        scale = scales["scale"].reshape(*(1,) * ids.ndim, -1)
        return (jnp.take(codes, ids, axis=0).astype(jnp.float32) * scale).astype(dtype)

    def letters(self, inner: str, outer: str) -> tuple[str, Mapping[str, str]]:
        letters = f"{inner} {outer}"
        return letters, {"scale": letters}

    def apart(self, codes: Array, scales: Mapping[str, Array], ways: int) -> tuple[Array, Mapping[str, Array], "Int8"]:
        return codes, scales, self
