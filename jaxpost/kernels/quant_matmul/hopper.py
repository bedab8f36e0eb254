# SPDX-License-Identifier: Apache-2.0
"""The kernel for Hopper: codes stream through shared memory, become bf16 in registers and meet the tokens there.

A tile of `128 x groups` outs belongs to a cluster of blocks, each with its share of the inputs. In a block one
warpgroup fetches tiles of codes, tokens and scales, `steps` ahead; each of the others turns its 128 outs' codes into
the left operand of the matrix unit (`hopper_fragments`), whose right one is the tokens: `acc[out, token]`. The
cluster's blocks add up their parts in shared memory (`hopper_reduction`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir.dialects import arith

from jaxpost.arrays import Array
from jaxpost.kernels.quant_matmul import hopper_fragments as fragments
from jaxpost.kernels.quant_matmul import hopper_reduction as reduction

OUTS, K = fragments.OUTS, fragments.K
PAIRS = 256
FETCHING_REGISTERS = 24


@dataclass(frozen=True)
class Plan:
    """groups: warpgroups, and so stretches of 128 outs, of a block. blocks: of a cluster, among which the inputs are
    divided. steps: tiles of codes that are on their way at once. rows: bytes of codes along in of such a tile."""

    groups: int = 2
    blocks: int = 4
    steps: int = 6
    rows: int = 128


@dataclass(frozen=True)
class Codes:
    """What the kernel must know of a format: its name, and how many inputs share a scale (0: all of them)."""

    name: str
    block: int

    @property
    def narrow(self) -> bool:
        return self.name != "int8"

    def inputs(self, plan: Plan) -> int:
        """Of a tile of codes."""
        return plan.rows * (2 if self.narrow else 1)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def product(x: Array, codes: Array, scale: Array, table: Array, kind: Codes, plan: Plan, tokens: int) -> Array:
    """x `[tokens rounded up to eights, in]` bf16, codes `[rows of bytes, out]`, scale `[blocks, out]` float32 (int8:
    `[out]`), table `[256]` int32, NF4's pairs of levels as bf16. Gives `[tokens, out]` in x's dtype."""
    padded, inputs = x.shape
    outs, tiles = codes.shape[1], inputs // kind.inputs(plan)
    shape = _Shapes(padded, tokens, outs, tiles, inputs)
    memory = _memory(kind, plan, shape)
    return plgpu.kernel(
        functools.partial(_body, kind=kind, plan=plan, shape=shape),
        out_type=jax.ShapeDtypeStruct((tokens, outs), x.dtype),
        scratch_types=memory,
        grid=(outs // (OUTS * plan.groups),),
        grid_names=("tile",),
        cluster=(plan.blocks,),
        cluster_names=("part",),
        num_threads=plan.groups + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
        kernel_name=f"quant_matmul_{kind.name}",
    )(x, codes, scale, table)


@dataclass(frozen=True)
class _Shapes:
    padded: int
    tokens: int
    outs: int
    tiles: int
    inputs: int


def _memory(kind: Codes, plan: Plan, shape: _Shapes) -> dict:
    room, width = reduction.places(shape.padded, plan.blocks), plan.groups * OUTS
    memory = {
        "code_tiles": plgpu.SMEM((plan.steps, plan.rows, width), _code_type(kind), transforms=CODES),
        "token_tiles": plgpu.SMEM((plan.steps, shape.padded, kind.inputs(plan)), jnp.bfloat16, transforms=TOKENS),
        "received": plgpu.SMEM((plan.blocks, room, plan.groups, 128, 4), jnp.float32),
        "full": plgpu.Barrier(num_arrivals=3 if kind.narrow else 2, num_barriers=plan.steps),
        "free": plgpu.Barrier(num_arrivals=plan.groups, num_barriers=plan.steps),
    }
    if kind.narrow:
        memory["scale_tiles"] = plgpu.SMEM((plan.steps, kind.inputs(plan) // kind.block, width), jnp.float32)
    if kind.name == "nf4":
        memory["pairs"] = plgpu.SMEM((PAIRS, fragments.PAIRS_ROW // 4), jnp.int32)
    return memory


def shared_bytes(kind: Codes, plan: Plan, padded: int) -> int:
    """Of shared memory, barriers aside."""
    inputs = kind.inputs(plan)
    scales = inputs // kind.block * OUTS * 4 if kind.narrow else 0
    step = plan.groups * (plan.rows * OUTS + scales) + padded * inputs * 2
    received = plan.blocks * reduction.places(padded, plan.blocks) * plan.groups * 128 * reduction.UNIT
    return plan.steps * step + received + (PAIRS * fragments.PAIRS_ROW if kind.name == "nf4" else 0)


CODES = (plgpu.TilingTransform((8, 128)), plgpu.SwizzleTransform(128))
TOKENS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


def _code_type(kind: Codes) -> type:
    return jnp.uint8 if kind.narrow else jnp.int8


def _body(x, codes, scale, table, y, *, kind, plan, shape, **memory):
    group, tile, part = (jax.lax.axis_index(name) for name in ("group", "tile", "part"))
    first = part * shape.tiles // plan.blocks
    last = (part + 1) * shape.tiles // plan.blocks

    @pl.when(group == plan.groups)
    def _():
        plgpu.set_max_registers(FETCHING_REGISTERS, action="decrease")
        _fetch(x, codes, scale, tile, first, last, kind, plan, memory)

    @pl.when(group < plan.groups)
    def _():
        plgpu.set_max_registers(_registers(plan.groups), action="increase")
        if kind.name == "nf4":
            _fill(table, memory["pairs"], plan.groups)
        accumulate = functools.partial(_accumulate, group, last - first, kind, plan, memory)
        accumulator = pl.run_scoped(accumulate, plgpu.WGMMAAccumulatorRef((OUTS, shape.padded), jnp.float32))
        _send(accumulator, memory["received"], plan, shape)

    _meet()

    @pl.when(group < plan.groups)
    def _():
        _store(y, scale, memory["received"], (tile * plan.groups + group) * OUTS, part, kind, plan, shape)


def _registers(groups: int) -> int:
    """What the multiprocessor has for each thread that computes, the fetching group having few; a multiple of 8."""
    return min(240, (512 - FETCHING_REGISTERS) // groups // 8 * 8)


def _fetch(x, codes, scale, tile, first, last, kind, plan, memory):
    """Copies of tile after tile, each into a place that everyone is done with."""

    outs = pl.ds(tile * plan.groups * OUTS, plan.groups * OUTS)
    inputs = kind.inputs(plan)

    def fetch(i, again):
        step = jax.lax.rem(i - first, plan.steps)
        if again:
            plgpu.barrier_wait(memory["free"].at[step])
        full = memory["full"].at[step]
        plgpu.copy_gmem_to_smem(codes.at[pl.ds(i * plan.rows, plan.rows), outs], memory["code_tiles"].at[step], full)
        if kind.narrow:
            blocks = inputs // kind.block
            plgpu.copy_gmem_to_smem(scale.at[pl.ds(i * blocks, blocks), outs], memory["scale_tiles"].at[step], full)
        plgpu.copy_gmem_to_smem(x.at[:, pl.ds(i * inputs, inputs)], memory["token_tiles"].at[step], full)

    early = jnp.minimum(first + plan.steps, last)
    jax.lax.fori_loop(first, early, lambda i, _: fetch(i, False), None)
    jax.lax.fori_loop(early, last, lambda i, _: fetch(i, True), None)


def _accumulate(group, count, kind, plan, memory, accumulator):
    """Codes are converted while the matrix unit is at work on those before them."""
    parts = kind.inputs(plan) // K

    def step(i, _):
        place = jax.lax.rem(i, plan.steps)
        plgpu.barrier_wait(memory["full"].at[place])
        operand = _operand(kind, plan, memory, place, 0)
        for part in range(parts):
            rows = memory["token_tiles"].at[place, :, pl.ds(part * K, K)].transpose((1, 0))
            plgpu.wgmma(accumulator, operand, rows)
            busy = operand
            if part + 1 < parts:
                operand = _operand(kind, plan, memory, place, part + 1)
            plgpu.wgmma_wait(0)
            _keep(busy)
        plgpu.barrier_arrive(memory["free"].at[place])

    jax.lax.fori_loop(0, count, step, None)
    return accumulator[...]


def _keep(operand):
    """The matrix unit reads an operand's registers on its own time, which the compiler does not know of: they must not
    be given to others before it is done."""

    @_inline(plgpu.Layout.WGMMA)
    def keep(_, operand):
        fragments.keep(operand)

    keep(operand)


def _inline(*types: Any, result: Any = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What is written in the words of Mosaic itself, with these types of arguments and result."""
    return plgpu.inline_mgpu(arg_types=types, return_type=result)


def _operand(kind, plan, memory, place, part):
    """The codes of 64 inputs as the left operand."""
    refs = [memory["code_tiles"].at[place]]
    types = [plgpu.RefType(CODES)]
    if kind.narrow:
        refs.append(memory["scale_tiles"].at[place, part * K // kind.block])
        types.append(plgpu.RefType())
    if kind.name == "nf4":
        refs.append(memory["pairs"])
        types.append(plgpu.RefType())
    result = plgpu.ShapeDtypeStruct((OUTS, K), jnp.bfloat16, layout=plgpu.Layout.WGMMA)

    @_inline(*types, result=result)
    def make(_, tile, *others):
        if kind.name == "int8":
            return fragments.operand(fragments.from_int8(tile, plan.groups, part))
        scales = fragments.scales_of(others[0])
        if kind.name == "int4":
            return fragments.operand(fragments.from_int4(tile, plan.groups, part, scales))
        return fragments.operand(fragments.from_nf4(tile, plan.groups, part, scales, others[1]))

    return make(*refs)


def _fill(table, pairs, groups):
    """A copy of every entry for each bank."""

    @_inline(plgpu.RefType(), plgpu.RefType())
    def fill(_, table, pairs):
        fragments.fill(table, pairs, groups)

    fill(table, pairs)


def _send(accumulator, received, plan, shape):
    @_inline(plgpu.Layout.WGMMA, plgpu.RefType())
    def send(_, accumulator, received):
        reduction.send(reduction.split(accumulator, shape.padded), received, plan.blocks, plan.groups)

    send(accumulator, received)


def _meet():
    @_inline()
    def meet(_):
        reduction.meet()

    meet()


def _store(y, scale, received, first, part, kind, plan, shape):
    splat = plgpu.Layout.WG_SPLAT

    @_inline(plgpu.RefType(), plgpu.RefType(), plgpu.RefType(), splat(()), splat(()))
    def store(_, y, scale, received, first, part):
        first, part = (a.registers.item() for a in (first, part))
        room = reduction.places(shape.padded, plan.blocks)
        for place in range(room):
            unit = arith.addi(arith.muli(fragments.i32(place), fragments.i32(plan.blocks)), part)
            with utils.when(arith.cmpi(arith.CmpIPredicate.ult, unit, fragments.i32(reduction.units(shape.padded)))):
                sums = reduction.total(received, place, room, plan.blocks, plan.groups)
                reduction.store(
                    sums, y, None if kind.narrow else scale, first, unit, shape.outs, shape.tokens, kind.narrow
                )

    store(y, scale, received, first, part)


def pairs_of(levels: np.ndarray) -> np.ndarray:
    """`[256]` int32: for each byte, the levels of its high and its low half as two bf16, the first in the low bits."""
    bits = np.asarray(levels, jnp.bfloat16).view(np.uint16).astype(np.uint32)
    byte = np.arange(PAIRS)
    return (bits[byte >> 4] | bits[byte & 15] << 16).view(np.int32)
