# SPDX-License-Identifier: Apache-2.0
"""Four bits a weight at even distances, one scale for each group of inputs of an output."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.params import ParamSpec
from jaxpost.quant.blocks import blocked, finer, pack, spread, unblocked, unpack


@dataclass(frozen=True)
class Int4:
    """Symmetric: `scale = max|w| / 7` over each `group` inputs, `code = round(w / scale) + 8`, from 1 to 15.

    The error of one weight is at most half a scale, a fourteenth of the largest weight of its group. Groups run over
    the in axes taken as one; the last is shorter where `group` does not divide them, and 0 makes all of them one.
    Codes lie like the weight, two a byte along the last in axis; scales are `[lead, groups, out...]`. `outer` is the
    number of out axes of a weight (`of`).
    """

    group: int = 64
    outer: int = 1

    def of(self, spec: ParamSpec) -> "Int4":
        return replace(self, outer=len(spec.groups[2]))

    def encode(self, w: Array, inner: int, outer: int) -> tuple[Array, Mapping[str, Array]]:
        groups = blocked(w.astype(jnp.float32), inner, outer, self.group or _count(w, inner, outer))
        axis = groups.ndim - outer - 1
        scale = jnp.max(jnp.abs(groups), axis=axis, keepdims=True) / 7.0
        codes = jnp.round(groups / jnp.where(scale == 0, 1.0, scale)) + 8.0
        codes = unblocked(codes.astype(jnp.uint8), w.shape, inner, outer)
        return pack(codes, outer), {"scale": jnp.squeeze(scale, axis)}

    def decode(self, codes: Array, scales: Mapping[str, Array], dtype: Any) -> Array:
        scale = scales["scale"]
        values = unpack(codes, self.outer).astype(jnp.float32) - 8.0
        size = self.group or _count(values, values.ndim - scale.ndim + 1, self.outer)
        return (values * spread(scale, values.shape, self.outer, size)).astype(dtype)

    def letters(self, inner: str, outer: str) -> tuple[str, Mapping[str, str]]:
        return f"{inner} {outer}", {"scale": f"{inner.split()[0]} {outer}"}

    def apart(self, codes: Array, scales: Mapping[str, Array], ways: int) -> tuple[Array, Mapping[str, Array], "Int4"]:
        codes, scale, size = finer(codes, scales["scale"], self.outer, self.group, ways)
        return codes, {"scale": scale}, replace(self, group=size)


def _count(w: Array, inner: int, outer: int) -> int:
    return math.prod(w.shape[w.ndim - inner - outer : w.ndim - outer])
