# SPDX-License-Identifier: Apache-2.0
"""One Mosaic kernel on TPUs for both products: a blocked matrix product whose blocks of the first columns make `x a`
beside, from the rows of x that they hold anyway, and whose every block ends with `(x a) b`."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxpost.arrays import Array
from jaxpost.kernels.devices import check_tpu
from jaxpost.kernels.dispatch import Unsupported, interpreted, unasked
from jaxpost.kernels.lowrank_matmul.gradient import by_example, fused
from jaxpost.kernels.tuning import tuned
from jaxpost.quant import Int8, QArray
from jaxpost.shard import device_kind, on_one_device


@dataclass(frozen=True)
class Blocks:
    """Tunables: rows and columns of a block of the result, and how much of the contraction is done at a time."""

    rows: int = 1024
    columns: int = 1024
    depth: int = 512


WIDE = Blocks(2048, 2048)
"""For devices that multiply so fast that blocks of a thousand rows and columns would wait for memory."""


def lowrank_matmul(x: Array, w: Array | QArray, a: Array, b: Array) -> Array:
    check_tpu()
    if not on_one_device():
        raise Unsupported("takes one device's own arrays")
    check(x, b)
    if isinstance(w, QArray) and isinstance(w.format, Int8):
        unasked("int8 is widened within XLA's own products, and would be dequantised into memory first")
    if not isinstance(w, QArray) and not merges_freely(w.shape, a.shape[0]):
        unasked(f"axes of {w.shape[-1]} or {w.shape[-2]} numbers are padded, so that merging them is a copy")
    return fused(functools.partial(product, interpret=interpreted()), x, w, a, b)


def check(x: Array, b: Array) -> None:
    if x.dtype != jnp.bfloat16:
        raise Unsupported(f"computes in bfloat16, not in {x.dtype}")
    if x.shape[0] % 256 or x.shape[1] % 256 or b.shape[1] % 256:
        raise Unsupported(f"{x.shape[0]} rows, {x.shape[1]} in, {b.shape[1]} out are not all multiples of 256")


def merges_freely(shape: tuple[int, ...], inputs: int) -> bool:
    """Whether a weight's in axes, of so many numbers in all, and its out axes lie in memory as one axis each would: not
    where heads of 64 stand in registers of 128."""
    count = next(n for n in range(1, len(shape)) if math.prod(shape[:n]) == inputs)
    return all(len(part) == 1 or part[-1] % 128 == 0 for part in (shape[:count], shape[count:]))


def product(x: Array, w: Array, a: Array, b: Array, across: bool, interpret: bool = False) -> tuple[Array, Array]:
    def one(x: Array, w: Array, a: Array, b: Array) -> tuple[Array, Array]:
        default = WIDE if any(name in device_kind() for name in ("v6", "7x")) else Blocks()
        sizes = dict(t=x.shape[0], i=x.shape[1], o=b.shape[1], r=b.shape[0], across=int(across))
        return blocked(x, w, a, b, across, tuned("lowrank_matmul", "pallas_tpu", sizes, default), interpret)

    return by_example(one, across)(x, w, a, b)


def blocked(
    x: Array, w: Array, a: Array, b: Array, across: bool, blocks: Blocks, interpret: bool
) -> tuple[Array, Array]:
    (t, k), (r, n) = x.shape, b.shape
    rows, columns, depth = _fitting(t, blocks.rows), _fitting(n, blocks.columns), _fitting(k, blocks.depth)
    grid = (t // rows, n // columns, k // depth)
    w_spec = (
        pl.BlockSpec((columns, depth), lambda i, j, k: (j, k))
        if across
        else pl.BlockSpec((depth, columns), lambda i, j, k: (k, j))
    )
    return pl.pallas_call(
        functools.partial(_block, across=across),
        grid=grid,
        in_specs=[
            pl.BlockSpec((rows, depth), lambda i, j, k: (i, k)),
            w_spec,
            # Read along with the first columns alone: behind them it stays where it is.
            pl.BlockSpec((r, depth), lambda i, j, k: (0, lax.select(j == 0, k, grid[2] - 1))),
            pl.BlockSpec((r, columns), lambda i, j, k: (0, j)),
        ],
        out_specs=(
            pl.BlockSpec((rows, columns), lambda i, j, k: (i, j)),
            pl.BlockSpec((rows, r), lambda i, j, k: (i, 0)),
        ),
        out_shape=(jax.ShapeDtypeStruct((t, n), x.dtype), jax.ShapeDtypeStruct((t, r), x.dtype)),
        scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32), pltpu.VMEM((rows, r), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=64 * 2**20
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * t * k * n + 2 * t * r * (k + n),
            bytes_accessed=x.dtype.itemsize * (t * k * grid[1] + k * n * grid[0] + t * n),
            transcendentals=0,
        ),
        interpret=interpret,
        name="lowrank_matmul",
    )(x, w, a, b)


def _block(x: Any, w: Any, a: Any, b: Any, y: Any, s: Any, wide: Any, low: Any, *, across: bool) -> None:
    column, step, last = pl.program_id(1), pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(step == 0)
    def _() -> None:
        wide[...] = jnp.zeros_like(wide)

    wide[...] += _dot(x[...], w[...], across)

    @pl.when(column == 0)
    def _() -> None:
        part = _dot(x[...], a[...], True)
        low[...] = jnp.where(step == 0, part, low[...] + part)

    @pl.when((column == 0) & (step == last))
    def _() -> None:
        s[...] = low[...].astype(s.dtype)

    @pl.when(step == last)
    def _() -> None:
        y[...] = (wide[...] + _dot(s[...], b[...], False)).astype(y.dtype)


def _dot(x: Any, w: Any, across: bool) -> Any:
    return lax.dot_general(x, w, (((1,), (int(across),)), ((), ())), preferred_element_type=jnp.float32)


def _fitting(size: int, most: int) -> int:
    """The largest block of at most so many that divides an axis."""
    return next(
        block for block in range(min(size, most), 0, -1) if size % block == 0 and (block % 128 == 0 or block == size)
    )
