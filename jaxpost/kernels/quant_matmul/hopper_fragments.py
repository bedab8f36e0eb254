# SPDX-License-Identifier: Apache-2.0
"""Codes in shared memory to operands of Hopper's matrix units, in registers: the part that Pallas has no words for.

A tile of codes lies as in memory, out axis last: 128 outs a line. A thread of a warpgroup reads words of four bytes,
four neighbouring outs each, and those four stand at the rows of its fragments in two blocks of 64: which out a row of
the product belongs to is our choice, since the epilogue undoes it. Hence no transposition: two codes that the unit
wants side by side, neighbours along in, come from two words (8 bits) or one byte (4 bits), and the byte permutation
that has to widen them anyway brings them together. Words are chosen such that a warp meets all 32 banks.

Eight bits become bf16 exactly by setting them into the fraction of 128: `(128 + low 7 bits) - (128 + sign bit)`, where
128 + 128 is one more in the exponent. Four bits likewise, `(128 + code) - 136`. NF4's levels come from a table of
pairs, one copy for each bank.
"""

from typing import Any

import numpy as np
from jax.experimental.mosaic import gpu as mgpu  # noqa: F401  (registers the dialect)
from jax.experimental.mosaic.gpu import fragmented_array as fragments
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

OUTS = 128
"""Of a tile that one warpgroup converts; a line of shared memory."""
K = 64
"""Inputs that one call makes a fragment of."""

PAIRS_ROW = 128
"""Bytes of a row of NF4's table: one copy of an entry for each bank."""


def i32(value: int) -> ir.Value:
    return utils.c(value - (1 << 32) if value >= 1 << 31 else value, _i32())


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def ptx(code: str, *args: ir.Value) -> Any:
    """An instruction without side effects whose result is 32 bits."""
    return utils.inline_ptx(code, *args, result_types=_i32())  # pyright: ignore[reportAttributeAccessIssue]


def effect(code: str, *args: ir.Value) -> None:
    """An instruction that is there for what it does."""
    utils.inline_ptx(code, *args, has_side_effects=True)  # pyright: ignore[reportAttributeAccessIssue]


def lane_and_warp() -> tuple[ir.Value, ir.Value]:
    thread = arith.remui(utils.thread_idx(), i32(128))
    return arith.remui(thread, i32(32)), arith.divui(thread, i32(32))


def column(narrow: bool) -> ir.Value:
    """The first of the thread's four outs within its tile of 128. Four-bit tiles are read four rows at a time, others
    eight, every second of which: swizzling spreads the one over other banks than the other."""
    lane, warp = lane_and_warp()
    group = arith.divui(lane, i32(4))
    if not narrow:
        return arith.addi(arith.muli(warp, i32(32)), arith.muli(group, i32(4)))
    far = arith.muli(arith.divui(group, i32(4)), i32(64))
    return arith.addi(arith.addi(arith.muli(warp, i32(16)), far), arith.muli(arith.remui(group, i32(4)), i32(4)))


def along(base: ir.Value, offset: ir.Value | int) -> ir.Value:
    """The pointer some bytes further."""
    return utils.getelementptr(base, [offset], ir.IntegerType.get_signless(8))


def load(at: ir.Value, offset: int = 0) -> ir.Value:
    return llvm.load(_i32(), along(at, offset), alignment=4)


def load4(at: ir.Value) -> list[ir.Value]:
    """Four neighbouring float32."""
    f32 = ir.F32Type.get()
    loaded = llvm.load(ir.VectorType.get((4,), f32), at, alignment=16)
    return [vector.extract(loaded, [], [j]) for j in range(4)]


def permute(a: ir.Value, b: ir.Value, chosen: int) -> ir.Value:
    return ptx(f"prmt.b32 $0, $1, $2, {chosen:#x};", a, b)


def masked_or(a: ir.Value, mask: int, bits: int) -> ir.Value:
    """`(a & mask) | bits`"""
    return ptx(f"lop3.b32 $0, $1, {mask:#x}, {bits:#x}, 0xEA;", a)


def from_int8(tile: ir.Value, groups: int, part: int) -> list[list[list[ir.Value]]]:
    """Pairs of codes as bf16: by step of 16 inputs, then by half of it, then by out."""
    lane, _ = lane_and_warp()
    even = arith.muli(arith.remui(lane, i32(4)), i32(2))
    at = [_place(tile, column(narrow=False), arith.addi(even, i32(i))) for i in range(2)]
    found = []
    for step in range(K // 16):
        halves = []
        for half in range(2):
            eight = part * K // 8 + 2 * step + half
            first, second = (load(at[i], eight * groups * 8 * OUTS) for i in range(2))
            halves.append([_pair_of_int8(first, second, j) for j in range(4)])
        found.append(halves)
    return found


def _pair_of_int8(first: ir.Value, second: ir.Value, j: int) -> ir.Value:
    both = permute(first, second, (4 + j) << 8 | j)
    return ptx(
        "sub.rn.bf16x2 $0, $1, $2;", masked_or(both, 0x007F007F, 0x43004300), masked_or(both, 0x00800080, 0x43004300)
    )


def from_int4(tile: ir.Value, groups: int, part: int, scales: list[ir.Value]) -> list[list[list[ir.Value]]]:
    """Pairs of codes less 8, times the scales of their outs (twice each, as bf16)."""
    at = _narrow_places(tile)
    bias = i32(0x43084308)  # 136, twice
    found = []
    for step in range(K // 16):
        halves = []
        for half in range(2):
            word = load(at[half], (part * K // 16 + step) * groups * 8 * OUTS)
            high = ptx("shr.u32 $0, $1, 4;", word)
            pairs = []
            for j in range(4):
                both = masked_or(permute(high, word, (4 + j) << 8 | j), 0x000F000F, 0x43004300)
                pairs.append(_times(ptx("sub.rn.bf16x2 $0, $1, $2;", both, bias), scales[j]))
            halves.append(pairs)
        found.append(halves)
    return found


def from_nf4(
    tile: ir.Value, groups: int, part: int, scales: list[ir.Value], table: ir.Value
) -> list[list[list[ir.Value]]]:
    """Pairs of levels, times the largest of their blocks (twice each, as bf16)."""
    at = _narrow_places(tile)
    lane, _ = lane_and_warp()
    own = along(utils.memref_ptr(table), arith.muli(lane, i32(4)))
    found = []
    for step in range(K // 16):
        halves = []
        for half in range(2):
            word = load(at[half], (part * K // 16 + step) * groups * 8 * OUTS)
            pairs = []
            for j in range(4):
                shifted = ptx("shl.b32 $0, $1, 7;", word) if not j else ptx(f"shr.u32 $0, $1, {8 * j - 7};", word)
                row = ptx(f"and.b32 $0, $1, {255 * PAIRS_ROW:#x};", shifted)
                pairs.append(_times(load(along(own, row)), scales[j]))
            halves.append(pairs)
        found.append(halves)
    return found


def _times(pair: ir.Value, scale: ir.Value) -> ir.Value:
    return ptx("mul.rn.bf16x2 $0, $1, $2;", pair, scale)


def scales_of(ref: ir.Value, narrow: bool = True) -> list[ir.Value]:
    """The scales of the thread's four outs, each twice as bf16."""
    own = arith.addi(arith.muli(utils.warpgroup_idx(sync=False), i32(OUTS)), column(narrow))
    at = along(utils.memref_ptr(ref), arith.muli(own, i32(4)))
    return [ptx("cvt.rn.bf16x2.f32 $0, $1, $1;", scale) for scale in load4(at)]


def _narrow_places(tile: ir.Value) -> list[ir.Value]:
    """Where the thread's words of the two halves of a step are: eight rows of bytes, four for each."""
    lane, _ = lane_and_warp()
    quarter = arith.remui(lane, i32(4))
    return [_place(tile, column(narrow=True), arith.addi(quarter, i32(4 * half))) for half in range(2)]


def _place(tile: ir.Value, out: ir.Value, row: ir.Value) -> ir.Value:
    """Where a word of the first eight rows of the group's tile of 128 outs is. Tiles of eight rows lie one after the
    other, first those of all groups' outs. Lines of 128 bytes are swizzled: bits 4 to 6 of an address are XORed with
    bits 7 to 9."""
    group = utils.warpgroup_idx(sync=False)
    swizzled = arith.xori(out, arith.muli(row, i32(16)))
    line = arith.addi(arith.muli(group, i32(8)), row)
    return along(utils.memref_ptr(tile), arith.addi(arith.muli(line, i32(OUTS)), swizzled))


def keep(array: fragments.FragmentedArray) -> None:
    """A use of all its registers, at this point of the program."""
    one, word = ir.VectorType.get((1,), _i32()), _i32()
    words = [vector.extract(vector.bitcast(one, register), [], [0]) for register in array.registers.flat]
    assert all(value.type == word for value in words)
    effect("// in use until here", *words)


def operand(pairs: list[list[list[ir.Value]]]) -> fragments.FragmentedArray:
    """Pairs by step, half and out as the left operand `[128 outs, 64 inputs]`: out `2 i + h` of a thread's four stands
    in row 8 h of its 16 of block i."""
    layout = fragments.WGMMA_LAYOUT
    bf16 = ir.BF16Type.get()
    registers = np.empty(layout.registers_shape((OUTS, K)), dtype=object)
    flat = registers.reshape(2, K // 8, 2)
    pair_type, one = ir.VectorType.get((2,), bf16), ir.VectorType.get((1,), _i32())
    for step, halves in enumerate(pairs):
        for half, outs in enumerate(halves):
            for j, pair in enumerate(outs):
                flat[j // 2, 2 * step + half, j % 2] = vector.bitcast(pair_type, vector.broadcast(one, pair))
    return fragments.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)


def fill(table: ir.Value, pairs: ir.Value, groups: int) -> None:
    """Entry after entry of a table in memory, once for each bank; all warps of the computing groups share the work."""
    lane, _ = lane_and_warp()
    warp, warps = utils.warp_idx(sync=False), 4 * groups
    source, target = utils.memref_ptr(table), utils.memref_ptr(pairs)
    for i in range(-(-256 // warps)):
        entry = arith.minui(arith.addi(warp, i32(i * warps)), i32(255))
        value = llvm.load(_i32(), along(source, arith.muli(entry, i32(4))), alignment=4)
        llvm.store(
            value, along(target, arith.addi(arith.muli(entry, i32(PAIRS_ROW)), arith.muli(lane, i32(4)))), alignment=4
        )
    effect(f"bar.sync 15, {warps * 32};")
