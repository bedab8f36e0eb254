# SPDX-License-Identifier: Apache-2.0
"""One bit a weight: whether it is above zero."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.params import ParamSpec

BITS = 8


@dataclass(frozen=True)
class Sign:
    """+1 for numbers above zero, -1 for all others, zero among them: eight to a byte, without a scale.

    The in axes, of sizes `inner`, are taken as one and packed along it: bit j of byte i is row `8 i + j`, and what the
    last byte has left over is 0. Codes are `[lead, ceil(in / 8), out]`, with `outer` out axes. Both are known once
    `of` a spec.
    """

    inner: tuple[int, ...] = ()
    outer: int = 1

    def of(self, spec: ParamSpec) -> "Sign":
        return Sign(spec.sizes(1), len(spec.groups[2]))

    def encode(self, w: Array, inner: int, outer: int) -> tuple[Array, Mapping[str, Array]]:
        lead, out = w.shape[: w.ndim - inner - outer], w.shape[w.ndim - outer :]
        rows = (w > 0).reshape(*lead, -1, *out)
        spare = [(0, 0)] * rows.ndim
        spare[len(lead)] = (0, -rows.shape[len(lead)] % BITS)
        eights = jnp.pad(rows, spare).reshape(*lead, -1, BITS, *out).astype(jnp.uint8)
        values = eights << self._places(eights.ndim)
        return jnp.sum(values, axis=len(lead) + 1, dtype=jnp.uint8), {}

    def decode(self, codes: Array, scales: Mapping[str, Array], dtype: Any) -> Array:
        lead, out = codes.shape[: codes.ndim - self.outer - 1], codes.shape[codes.ndim - self.outer :]
        eights = jnp.expand_dims(codes, len(lead) + 1)
        bits = (eights >> self._places(eights.ndim)) & 1
        rows = bits.reshape(*lead, -1, *out)
        rows = jax.lax.slice_in_dim(rows, 0, math.prod(self.inner), axis=len(lead))
        return _signs(rows, dtype).reshape(*lead, *self.inner, *out)

    def rows(self, codes: Array, ids: Array, dtype: Any) -> Array:
        """Rows of a table `[v, out]` by ids, of which nothing else is unpacked."""
        bytes_, places = jnp.take(codes, ids // BITS, axis=0), (ids % BITS).astype(jnp.uint8)
        return _signs((bytes_ >> places.reshape(*ids.shape, *(1,) * self.outer)) & 1, dtype)

    def letters(self, inner: str, outer: str) -> tuple[str, Mapping[str, str]]:
        return f"{inner.split()[0]} {outer}", {}

    def _places(self, ndim: int) -> Array:
        """The eight places of a byte, along the axis in front of the out ones."""
        return jnp.arange(BITS, dtype=jnp.uint8).reshape(*(1,) * (ndim - self.outer - 1), BITS, *(1,) * self.outer)


def _signs(bits: Array, dtype: Any) -> Array:
    return jnp.where(bits == 1, 1, -1).astype(dtype)
