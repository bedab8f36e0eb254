# SPDX-License-Identifier: Apache-2.0
"""Eight-bit floating point, one scale per output channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.params import ParamSpec

LARGEST = 448.0
"""Of e4m3 without infinities (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433)."""


@dataclass(frozen=True)
class Fp8:
    """`scale = max|w| / 448` over the in axes, `code = w / scale` as e4m3: three bits of fraction, four of exponent.

    The error of one weight is at most a sixteenth of it, or 2^-10 scales where that is more. The scale keeps the in
    axes with size one, so that decoding is one broadcast product.
    """

    def of(self, spec: ParamSpec) -> "Fp8":
        return self

    def encode(self, w: Array, inner: int, outer: int) -> tuple[Array, Mapping[str, Array]]:
        axes = tuple(range(-inner - outer, -outer))
        w = w.astype(jnp.float32)
        scale = jnp.max(jnp.abs(w), axis=axes, keepdims=True) / LARGEST
        codes = w / jnp.where(scale == 0, 1.0, scale)
        # The quotient of the largest may be rounded up, and what is beyond the largest number here is none.
        return jnp.clip(codes, -LARGEST, LARGEST).astype(jnp.float8_e4m3fn), {"scale": scale}

    def decode(self, codes: Array, scales: Mapping[str, Array], dtype: Any) -> Array:
        return (codes.astype(jnp.float32) * scales["scale"]).astype(dtype)

    def letters(self, inner: str, outer: str) -> tuple[str, Mapping[str, str]]:
        letters = f"{inner} {outer}"
        return letters, {"scale": letters}

    def apart(self, codes: Array, scales: Mapping[str, Array], ways: int) -> tuple[Array, Mapping[str, Array], "Fp8"]:
        return codes, scales, self
