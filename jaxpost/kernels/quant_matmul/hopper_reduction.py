# SPDX-License-Identifier: Apache-2.0
"""What becomes of accumulators: added up over the cluster's blocks, scaled, and stored as rows of the result.

Four neighbouring outs of a thread and token make one unit of 16 bytes. Every block writes its units into the shared
memory of their owners, one place for each writer; behind the cluster's barrier an owner adds them up in a fixed order
(the result does not depend on timing) and stores eight bytes of bf16 or sixteen of float32.
"""

import functools

from jax.experimental.mosaic.gpu import fragmented_array as fragments
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

from jaxpost.kernels.quant_matmul.hopper_fragments import along, column, effect, i32, lane_and_warp

UNIT = 16
"""Bytes: four float32."""


def units(tokens: int) -> int:
    """Of a thread: pairs of neighbouring tokens in blocks of eight."""
    return tokens // 4


def places(tokens: int, blocks: int) -> int:
    """The most units that one block owns, per thread."""
    return -(-units(tokens) // blocks)


def split(accumulator: fragments.FragmentedArray, tokens: int) -> list[list[ir.Value]]:
    """By unit, the four outs' numbers."""
    flat = accumulator.registers.reshape(2, tokens // 8, 2, -1)
    found = []
    for n in range(tokens // 8):
        for e in range(2):
            if flat.shape[-1] == 1:
                found.append([vector.extract(flat[j // 2, n, j % 2, 0], [], [e]) for j in range(4)])
            else:
                found.append([vector.extract(flat[j // 2, n, j % 2, e], [], [0]) for j in range(4)])
    return found


def send(parts: list[list[ir.Value]], received: ir.Value, blocks: int, groups: int) -> None:
    """Units to their owners: unit u to block `u % blocks`. `received` is `[blocks, places, groups, threads, 4]`."""
    own = arith.index_cast(ir.IntegerType.get_signless(32), utils.cluster_idx())
    room = -(-len(parts) // blocks)
    base = utils.memref_ptr(received)
    for u, numbers in enumerate(parts):
        place = arith.addi(arith.muli(own, i32(room)), i32(u // blocks))
        mine = along(base, _offset(place, groups))
        remote = utils.get_cluster_ptr(mine, i32(u % blocks), generic=False) if blocks > 1 else mine
        space = "shared::cluster" if blocks > 1 else "shared"
        effect(f"st.{space}.v4.f32 [$0], {{$1, $2, $3, $4}};", remote, *numbers)


def _offset(place: ir.Value, groups: int) -> ir.Value:
    thread = arith.remui(utils.thread_idx(), i32(128))
    group = utils.warpgroup_idx(sync=False)
    row = arith.addi(arith.muli(place, i32(groups)), group)
    return arith.muli(arith.addi(arith.muli(row, i32(128)), thread), i32(UNIT))


def meet() -> None:
    """All threads of all blocks of the cluster, their writes to shared memory done."""
    effect("barrier.cluster.arrive.release.aligned;")
    effect("barrier.cluster.wait.acquire.aligned;")


def total(received: ir.Value, place: int, room: int, blocks: int, groups: int) -> ir.Value:
    """The sum of one owned unit, in the order of the blocks."""
    base = utils.memref_ptr(received)
    four = ir.VectorType.get((4,), ir.F32Type.get())
    parts = [
        llvm.load(four, along(base, _offset(i32(block * room + place), groups)), alignment=UNIT)
        for block in range(blocks)
    ]
    return functools.reduce(arith.addf, parts)


def store(
    sums: ir.Value,
    y: ir.Value,
    scale: ir.Value | None,
    first: ir.Value,
    unit: ir.Value,
    outs: int,
    tokens: int,
    narrow: bool,
) -> None:
    """One unit's sums, times their outs' scales, at their place in `y [tokens, outs]`, if it has that token."""
    lane, _ = lane_and_warp()
    quarter = arith.remui(lane, i32(4))
    token = arith.addi(
        arith.addi(arith.muli(arith.divui(unit, i32(2)), i32(8)), arith.muli(quarter, i32(2))),
        arith.remui(unit, i32(2)),
    )
    out = arith.addi(first, column(narrow))
    if scale is not None:
        four = ir.VectorType.get((4,), ir.F32Type.get())
        sums = arith.mulf(
            sums, llvm.load(four, along(utils.memref_ptr(scale), arith.muli(out, i32(4))), alignment=UNIT)
        )
    kind = ir.MemRefType(y.type).element_type
    size = utils.bytewidth(kind)
    values = sums if size == 4 else arith.truncf(ir.VectorType.get((4,), kind), sums)
    with utils.when(arith.cmpi(arith.CmpIPredicate.ult, token, i32(tokens))):
        place = arith.muli(arith.addi(arith.muli(token, i32(outs)), out), i32(size))
        llvm.store(values, along(utils.memref_ptr(y), place), alignment=4 * size)
