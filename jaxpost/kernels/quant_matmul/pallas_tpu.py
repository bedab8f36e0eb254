# SPDX-License-Identifier: Apache-2.0
"""TPUs (Mosaic): blocks of codes become bf16 in VMEM and meet the tokens in the matrix unit.

Codes lie as in memory, `[in, out]`. Two codes a byte stand for neighbouring inputs: instead of interleaving numbers,
the tokens' even and odd inputs are set apart. int8's scales, one per out, go on the result; those of blocks
of inputs on the numbers made of the codes. The product with a low-rank edit's second factor is one more step.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxpost.arrays import Array
from jaxpost.kernels.devices import check_tpu
from jaxpost.kernels.dispatch import Unsupported, interpreted, unasked
from jaxpost.kernels.quant_matmul import reference
from jaxpost.kernels.quant_matmul.gradient import served
from jaxpost.kernels.quant_matmul.layout import FORMATS, block, block_scales, is_packed, sizes
from jaxpost.kernels.quant_matmul.shapes import MOST_TOKENS
from jaxpost.kernels.tuning import tuned
from jaxpost.quant import Int8, QArray
from jaxpost.quant.nf4 import LEVELS
from jaxpost.shard import on_one_device

LANES, SUBLANES = 128, 16
MOST_ROWS = 8192
"""Of bytes in a block, at 128 outs."""


@dataclass(frozen=True)
class Tunables:
    """Bytes of codes of a block: rows along in, and outs."""

    rows: int = 1024
    outs: int = 1024


def quant_matmul(x: Array, w: QArray, low: reference.Low | None = None) -> Array:
    check_tpu()
    check(x, w)
    if isinstance(w.format, Int8) and not interpreted():
        # By the compiler's count a step of decoding takes 2.5 times as long with the kernel's copies (NOTES.md).
        unasked("int8 in a stack of layers is read where it lies by XLA, and would be copied out first")
    name = type(w.format).__name__.lower()
    inputs, outs = sizes(w)
    key = {"f": name, "t": _rounded(x.shape[0]), "i": inputs, "o": outs}
    tunables = tuned("quant_matmul", "pallas_tpu", key, Tunables())
    return served(functools.partial(_product, tunables=tunables, interpret=interpreted()), x, w, low)


def check(x: Array, w: QArray) -> None:
    """Raises `Unsupported` for what the kernel cannot serve."""
    if not on_one_device():
        raise Unsupported("takes one device's own arrays")
    if not isinstance(w.format, FORMATS):
        raise Unsupported(f"weights as {type(w.format).__name__}")
    if x.dtype != jnp.bfloat16:
        raise Unsupported(f"{x.dtype} activations")
    if not 0 < x.shape[0] <= MOST_TOKENS:
        raise Unsupported(f"{x.shape[0]} tokens; it is for 1 to {MOST_TOKENS}")
    inputs, outs = sizes(w)
    if outs % LANES or w.codes.shape[0] % LANES:
        raise Unsupported(f"codes of {w.codes.shape[0]} x {outs} bytes; {LANES} must divide both")
    if _fitting(w.codes.shape[0], Tunables.rows, _unit(w)) > MOST_ROWS:
        raise Unsupported(f"{w.codes.shape[0]} rows of bytes cannot be cut by {_unit(w)}")
    if not isinstance(w.format, Int8) and (not is_packed(w) or block(w) % (2 * SUBLANES) or inputs % block(w)):
        raise Unsupported(f"blocks of {block(w)} inputs; they must be multiples of {2 * SUBLANES} that divide {inputs}")


def _rounded(tokens: int) -> int:
    return -(-tokens // SUBLANES) * SUBLANES


def _product(x: Array, w: QArray, low: reference.Low | None, tunables: Tunables, interpret: bool) -> Array:
    tokens, (inputs, outs) = x.shape[0], sizes(w)
    rows = jnp.pad(x, ((0, _rounded(tokens) - tokens), (0, 0)))
    scales, kind = block_scales(w), type(w.format).__name__.lower()
    bytes_ = _fitting(w.codes.shape[0], tunables.rows, _unit(w))
    out = _fitting(outs, max(LANES, min(tunables.outs, tunables.rows * tunables.outs // bytes_)), LANES)
    per_block = scales.shape[0] * bytes_ // w.codes.shape[0] if kind != "int8" else 1
    factors, factor_specs = _factors(rows, low, out)
    y = pl.pallas_call(
        functools.partial(_kernel, kind=kind),
        out_shape=jax.ShapeDtypeStruct((rows.shape[0], outs), x.dtype),
        grid=(outs // out, w.codes.shape[0] // bytes_),
        in_specs=[
            pl.BlockSpec((rows.shape[0], bytes_ * inputs // w.codes.shape[0]), lambda o, i: (0, i)),
            pl.BlockSpec((bytes_, out), lambda o, i: (i, o)),
            pl.BlockSpec((per_block, out), (lambda o, i: (0, o)) if kind == "int8" else lambda o, i: (i, o)),
            *factor_specs,
        ],
        out_specs=pl.BlockSpec((rows.shape[0], out), lambda o, i: (0, o)),
        scratch_shapes=[pltpu.VMEM((rows.shape[0], out), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows.shape[0] * inputs * outs, bytes_accessed=w.codes.size + 4 * scales.size, transcendentals=0
        ),
        interpret=interpret,
        name=f"quant_matmul_{kind}",
    )(rows, w.codes, scales, *factors)
    return y[:tokens]


def _unit(w: QArray) -> int:
    """What a block's rows of bytes must be a multiple of: lanes of the tokens, and of eight rows of scales."""
    return LANES if isinstance(w.format, Int8) else max(LANES, 8 * block(w) // 2)


def _fitting(size: int, wanted: int, unit: int) -> int:
    """The largest multiple of the unit up to what is wanted that divides the size; the size itself if none does."""
    fits = [n for n in range(unit, min(size, wanted) + 1, unit) if size % n == 0]
    return max(fits, default=size)


def _factors(x: Array, low: reference.Low | None, out: int) -> tuple[list[Array], list[pl.BlockSpec]]:
    """The tokens through the first factor of an edit, and the second: the product is one more step of the kernel's."""
    if low is None:
        return [], []
    a, b = (factor.astype(x.dtype) for factor in low)
    spare = -a.shape[1] % SUBLANES
    down, up = jnp.pad(x @ a, ((0, 0), (0, spare))), jnp.pad(b, ((0, spare), (0, 0)))
    return [down, up], [
        pl.BlockSpec(down.shape, lambda o, i: (0, 0)),
        pl.BlockSpec((up.shape[0], out), lambda o, i: (0, o)),
    ]


def _kernel(*refs: Any, kind: str) -> None:
    rows, codes, scale, *factors, y, total = refs
    step = pl.program_id(1)

    @pl.when(step == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    numbers, tokens = _numbers(codes[...], scale[...], kind), rows[...]
    tokens = tokens if kind == "int8" else _apart(tokens)
    total[...] += jnp.dot(tokens, numbers, preferred_element_type=jnp.float32)

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        found = total[...] * scale[...] if kind == "int8" else total[...]
        if factors:
            found += jnp.dot(factors[0][...], factors[1][...], preferred_element_type=jnp.float32)
        y[...] = found.astype(y.dtype)


def _numbers(codes: Array, scale: Array, kind: str) -> Array:
    """The numbers that a block of bytes stands for, `[inputs, out]` in bf16; of packed codes, the high halves of 64
    rows of bytes before the low ones."""
    if kind == "int8":
        return codes.astype(jnp.float32).astype(jnp.bfloat16)
    wide = codes.astype(jnp.int32)
    high, low = (_scaled(half, scale, kind).reshape(-1, LANES // 2, scale.shape[1]) for half in (wide >> 4, wide & 15))
    return jnp.concatenate([high, low], axis=1).reshape(-1, scale.shape[1])


def _apart(rows: Array) -> Array:
    """Of each 128 inputs the even ones before the odd: a product with a permutation, which is exact, and cheap where
    moving single lanes is not."""
    tokens, count = rows.shape[0], rows.shape[1] // LANES
    source, place = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    turn = (source == 2 * (place % (LANES // 2)) + place // (LANES // 2)).astype(rows.dtype)
    below = jnp.concatenate([rows[:, i * LANES : (i + 1) * LANES] for i in range(count)], axis=0)
    turned = jnp.dot(below, turn, preferred_element_type=jnp.float32).astype(rows.dtype)
    return jnp.concatenate([turned[i * tokens : (i + 1) * tokens] for i in range(count)], axis=1)


def _scaled(codes: Array, scale: Array, kind: str) -> Array:
    values = (codes - 8).astype(jnp.float32) if kind == "int4" else _levels(codes)
    blocks = values.reshape(scale.shape[0], -1, scale.shape[1])
    return (blocks * scale[:, None, :]).reshape(values.shape).astype(jnp.bfloat16)


def _levels(codes: Array) -> Array:
    """NF4's levels, taken from one register of them: along lanes that is one operation."""
    table = jnp.zeros((1, LANES), jnp.float32)
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    for i, level in enumerate(LEVELS):
        table = jnp.where(lane == i, jnp.float32(level), table)
    table = jnp.broadcast_to(table, (codes.shape[0], LANES))
    parts = [codes[:, at : at + LANES] for at in range(0, codes.shape[1], LANES)]
    return jnp.concatenate(
        [jnp.take_along_axis(table, part, axis=1, mode="promise_in_bounds") for part in parts], axis=1
    )
