# SPDX-License-Identifier: Apache-2.0
"""A quantised weight as the kernels want it: one in and one out axis, numbers of blocks that need no work first."""

import math
from dataclasses import replace
from typing import Any

import jax

from jaxpost.arrays import Array
from jaxpost.params import ParamSpec, constant
from jaxpost.quant import Int4, Int8, Nf4, QArray

FORMATS = (Int8, Int4, Nf4)
"""Those that `quant_matmul` reads."""


def as_matrix(w: QArray) -> QArray:
    """The weight `[in..., out...]` as `[in, out]`, without moving a byte: pairs of codes lie along the last in axis,
    and blocks run over the in axes taken as one."""
    if w.inner == w.outer == 1:
        return w
    outs = w.codes.shape[w.ndim - w.outer :]
    inner = math.prod(w.codes.shape[: w.ndim - w.outer])

    def flat(scale: Array) -> Array:
        return scale.reshape(-1, math.prod(outs)) if scale.shape[scale.ndim - w.outer :] == outs else scale

    spec = ParamSpec((inner, math.prod(outs)), ": i : o", constant(0))
    scales = {name: flat(scale) for name, scale in w.scales.items()}
    return QArray(w.codes.reshape(inner, -1), scales, w.format.of(spec))


def for_decoding(w: Any) -> Any:
    """A tree with each weight such that a product with few tokens need not prepare it again: NF4's doubly quantised
    maxima of blocks are decoded (4.13 bits a weight become 4.5). Still a `QArray` of the same format, stacked or not;
    what stands for it is the same to the last bit. Once per set of weights, not per step."""
    return jax.tree.map(_prepared, w, is_leaf=_is_quantised)


def _is_quantised(leaf: Any) -> bool:
    return isinstance(leaf, QArray)


def _prepared(w: Any) -> Any:
    if not _is_quantised(w) or not isinstance(w.format, Nf4) or not w.format.double:
        return w
    format = replace(w.format, double=False)
    return w.replace(scales={"absmax": w.format.absmax(w.scales)}, format=format)


def block_scales(w: QArray) -> Array:
    """What a matrix's codes are multiplied by, `[blocks, out]` in float32: one block for int8."""
    return w.format.absmax(w.scales) if isinstance(w.format, Nf4) else w.scales["scale"]


def sizes(w: QArray) -> tuple[int, int]:
    """The in and out sizes of a matrix."""
    rows, outs = w.codes.shape
    return rows * (1 + is_packed(w)), outs


def is_packed(w: QArray) -> bool:
    """Whether a byte holds two codes. (An in axis of odd size is not packed.)"""
    return w.codes.dtype == "uint8"


def block(w: QArray) -> int:
    """How many inputs share a scale."""
    format = w.format
    if isinstance(format, Int8):
        return sizes(w)[0]
    if isinstance(format, Nf4):
        return format.block
    assert isinstance(format, Int4)
    return format.group or sizes(w)[0]
