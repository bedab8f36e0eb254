# SPDX-License-Identifier: Apache-2.0
"""NF4 (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): four bits a weight, at quantiles of a normal one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxpost.arrays import Array, everywhere
from jaxpost.params import ParamSpec
from jaxpost.quant.blocks import blocked, finer, pack, spread, unblocked, unpack

# fmt: off
LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)
# fmt: on
"""What the codes mean: the paper's appendix E."""

NESTED = 256
"""Block maxima that share a scale when they are quantised themselves."""


def dynamic_map() -> np.ndarray:
    """The 256 numbers of an eight-bit code with a dynamic exponent (Dettmers 2015, https://arxiv.org/abs/1511.04561):
    zero, one, and for each exponent e from 0 to 6 and either sign the middles of 2^(6 - e) even stretches between 0.1
    and 1, times 10^-e. Largest last."""
    found = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    low, high = np.float32(0.1), np.float32(1.0)
    for e in range(7):
        count = 2 ** (6 - e)
        step, k = np.float32((high - low) / np.float32(count)), np.arange(count + 1)
        # In the last place too: each end of a stretch is counted from the nearer end of all, and rounded once.
        ends = np.where(2 * k <= count, low + np.float64(step) * k, high - np.float64(step) * (count - k))
        ends = ends.astype(np.float32)
        middles = np.float32(10.0**-e) * ((ends[:-1] + ends[1:]) / np.float32(2))
        found += [middles, -middles]
    return np.sort(np.concatenate(found))


DYNAMIC = dynamic_map()
Lookup = Literal["select", "take"]


@dataclass(frozen=True)
class Nf4:
    """`code` is the level nearest to `w / absmax`, absmax being the largest |w| of each block of `block` inputs of an
    output; the error of one weight is at most absmax times half the widest gap between levels, 0.152.

    `double` stores the absmax of a matrix in eight bits: less their mean (`offset`), in blocks of 256 along the
    outputs' own blocks one output after the other, as codes of the dynamic map times the block's largest (`nested`).
    That is 4.13 bits a weight instead of 4.5.

    Codes and numbers are those of bitsandbytes 0.50 for a matrix whose number of inputs is a multiple of `block`: its
    blocks run along the rows of `[out, in]`, which here are columns. Codes lie like the weight, two a byte along the
    last in axis; absmax is `[lead, blocks, out...]`, nested `[lead, blocks of 256]`, offset `[lead]`. Blocks run over
    the in axes taken as one; the last is shorter where `block` does not divide them. `outer` is the number of out axes
    of a weight (`of`). `lookup` says how codes become levels: by a tree of selections, or by taking from a table.
    """

    double: bool = True
    block: int = 64
    outer: int = 1
    lookup: Lookup = "select"

    def of(self, spec: ParamSpec) -> "Nf4":
        return replace(self, outer=len(spec.groups[2]))

    def encode(self, w: Array, inner: int, outer: int) -> tuple[Array, Mapping[str, Array]]:
        blocks = blocked(w.astype(jnp.float32), inner, outer, self.block)
        axis = blocks.ndim - outer - 1
        absmax = jnp.max(jnp.abs(blocks), axis=axis, keepdims=True)
        codes = unblocked(_nearest(_normal(blocks, absmax), LEVELS), w.shape, inner, outer)
        absmax = jnp.squeeze(absmax, axis)
        return pack(codes, outer), _nest(absmax, outer) if self.double else {"absmax": absmax}

    def decode(self, codes: Array, scales: Mapping[str, Array], dtype: Any) -> Array:
        values = _LOOKUPS[self.lookup](unpack(codes, self.outer))
        absmax = self.absmax(scales)
        return (values * spread(absmax, values.shape, self.outer, self.block)).astype(dtype)

    def absmax(self, scales: Mapping[str, Array]) -> Array:
        """The largest |w| of each block, `[lead, blocks, out...]`."""
        return _unnest(scales, self.outer) if "nested" in scales else scales["absmax"]

    def letters(self, inner: str, outer: str) -> tuple[str, Mapping[str, str]]:
        scales = {"absmax": f"{inner.split()[0]} {outer}"}
        # No rule knows g: the blocks of 256 run across all that may be cut.
        return f"{inner} {outer}", scales | ({"nested": "g", "offset": ""} if self.double else {})

    def apart(self, codes: Array, scales: Mapping[str, Array], ways: int) -> tuple[Array, Mapping[str, Array], "Nf4"]:
        codes, absmax, block = finer(codes, self.absmax(scales), self.outer, self.block, ways)
        return codes, {"absmax": absmax}, replace(self, double=False, block=block)


def _normal(x: Array, largest: Array) -> Array:
    """x as shares of the largest; by the reciprocal, as others do, since codes must be equal at ties too."""
    return jnp.clip(x * (1.0 / jnp.where(largest == 0, 1.0, largest)), -1.0, 1.0)


def _nearest(x: Array, levels: np.ndarray) -> Array:
    """The number of the nearest level, the lower one of two that are equally near."""
    bounds = (levels[:-1] + levels[1:]) / np.float32(2)
    if len(levels) <= 16:  # fused into what comes before; a search would be a loop
        return sum(((x > bound).astype(jnp.uint8) for bound in bounds), jnp.zeros(x.shape, jnp.uint8))
    return jnp.searchsorted(jnp.asarray(bounds), x).astype(jnp.uint8)


def _nest(absmax: Array, outer: int) -> dict[str, Array]:
    axis = absmax.ndim - outer - 1
    turned = jnp.moveaxis(absmax, axis, -1)
    lead, behind = turned.shape[:axis], turned.shape[axis:]
    flat = turned.reshape(*lead, -1)
    offset = jnp.mean(flat, axis=-1)
    offset += jnp.mean(flat - offset[..., None], axis=-1)  # right to the last place, whatever order sums are formed in
    rest = flat - offset[..., None]
    rows = blocked(rest, 1, 0, NESTED)
    nested = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
    codes = _nearest(_normal(rows, nested), DYNAMIC)
    codes = unblocked(codes, (*lead, rest.shape[-1]), 1, 0).reshape(*lead, *behind)
    return {"absmax": jnp.moveaxis(codes, -1, axis), "nested": jnp.squeeze(nested, -1), "offset": offset}


def _unnest(scales: Mapping[str, Array], outer: int) -> Array:
    axis = scales["absmax"].ndim - outer - 1
    turned = jnp.moveaxis(scales["absmax"], axis, -1)
    values = _take(turned, DYNAMIC)
    flat = (*turned.shape[:axis], turned[(0,) * axis].size if axis else turned.size)
    largest = spread(scales["nested"], flat, 0, NESTED).reshape(turned.shape)
    offset = scales["offset"].reshape(*turned.shape[:axis], *(1,) * (turned.ndim - axis))
    return jnp.moveaxis(values * largest + offset, -1, axis)


def _select(codes: Array) -> Array:
    """Levels by a tree over the four bits: arithmetic that is fused into whatever uses it."""
    values = [everywhere(level, codes) for level in LEVELS.tolist()]
    for bit in range(4):
        odd = (codes & (1 << bit)) != 0
        values = [jnp.where(odd, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _take(codes: Array, levels: np.ndarray = LEVELS) -> Array:
    return jnp.asarray(levels).at[codes].get(mode="promise_in_bounds")


_LOOKUPS = {"select": _select, "take": _take}
