# SPDX-License-Identifier: Apache-2.0
"""The kernel for Hopper. Each block of threads walks over the tiles of one row and key/value head, or over a part of
them.

Scores are `S^T[places, heads] = K Q^T`, so that the many places fill the rows of the matrix units and the few query
heads are their columns (8 at least); sums are `O^T[size, heads] = V^T P^T`. Keys are never turned into another type:
where they are int8, the queries are whole numbers in two parts. Values of eight bits go through registers into 16 bits
in shared memory, since a matrix unit reads operands of eight bits only along the axis that it sums over. For a byte of
an int8 cache shared memory moves 1 (in) + 1 (matrix unit) of keys and 1 + 1 + 2 + 2 of values: four on average, 72 of
its 128 bytes a cycle at the 18 bytes a cycle and multiprocessor that memory delivers.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu
from jax.experimental.pallas import mosaic_gpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm as _llvm
from jaxlib.mlir.dialects import vector as _vector

from jaxpost.arrays import Array
from jaxpost.kernels.decode_attention.cache import Cached

# Their types differ from one jax to the next.
plgpu: Any = mosaic_gpu
mgpu: Any = gpu
llvm: Any = _llvm
vector: Any = _vector

LOW = -1e30
"""Below any score, and finite: the difference of two of them is a number."""

TINY = 1e-30
"""To divide by in a split that has no tile."""

LOG2E = math.log2(math.e)
PLACES_AND_HEADS = plgpu.Layout.WGMMA
OF_PLACE, OF_HEAD = PLACES_AND_HEADS.reduce(1), PLACES_AND_HEADS.reduce(0)


@dataclass(frozen=True)
class Plan:
    """What a kernel is built for: places of the ring and of a tile, tiles in memory, splits of a head's tiles, the head
    size, query heads (a multiple of 8), the types of codes and of the result, scale and cap of scores."""

    places: int
    tile: int
    stages: int
    splits: int
    size: int
    group: int
    codes: Any
    scale: float
    cap: float | None

    @property
    def heads(self) -> int:
        """Columns of the matrix units: query heads, filled up to eights."""
        return -(-self.group // 8) * 8

    @property
    def factor(self) -> float:
        return self.scale * (LOG2E if self.cap is None else 1.0)

    @property
    def coded(self) -> bool:
        return jnp.dtype(self.codes).itemsize == 1

    @property
    def dtype(self) -> Any:
        """What values are multiplied in, and keys that are not whole numbers: codes in the type that they are turned
        into fastest, and that has bits for all of them."""
        return jnp.float16 if self.coded else self.codes

    @property
    def shift(self) -> float:
        """Weights are times two to this many, so that in 16 bits with a short exponent they stay exact when times a
        small scale."""
        return 9.0 if self.coded else 0.0

    @property
    def whole(self) -> bool:
        return self.codes == jnp.int8


# Traced, lowered and compiled once, however many layers have it.
@functools.partial(jax.jit, static_argnums=0)
def walk(plan: Plan, walked: Array, q: Array, k: Array, v: Array, cached: Cached) -> tuple[Array, Array | None]:
    """Attention `[b, n, size]` of queries `[b, n, size]` to what is seen of the cache and to their own token's k and v
    `[b, k, size]`. Where there are several splits it is theirs, `[b, k, splits, size, heads]` in float32, and the
    logarithm (to base two) of what each was divided by `[b, k, splits, heads]`. walked `[b, 5]`: `around.blocks_of`."""
    batch, kv_heads = k.shape[:2]
    several = plan.splits > 1
    shape = (batch, kv_heads, plan.splits, plan.heads)
    parts = jax.ShapeDtypeStruct((*shape[:3], plan.size, plan.heads), jnp.float32)
    out = [parts, jax.ShapeDtypeStruct(shape, jnp.float32)] if several else [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    inputs = {"walked": walked, "q": q, "new_k": k, "new_v": v, "k": cached.k, "v": cached.v}
    inputs |= {"k_scale": cached.k_scale, "v_scale": cached.v_scale} if plan.coded else {}
    scratch = _scratch(plan, q.dtype, v.dtype)

    def body(*refs: Any) -> None:
        given, results, at = refs[: len(inputs)], refs[len(inputs) : -len(scratch)], refs[-len(scratch) :]
        _walk(plan, dict(zip(inputs, given, strict=True)), results, dict(zip(scratch, at, strict=True)))

    results = plgpu.kernel(
        body,
        out_type=out,
        scratch_types=list(scratch.values()),
        grid=(kv_heads, batch, plan.splits),
        grid_names=("head", "row", "split"),
        kernel_name="decode_attention",
        compiler_params=plgpu.CompilerParams(approx_math=True, unsafe_no_auto_barriers=True),
    )(*inputs.values())
    return (results[0], results[1]) if several else (results[0], None)


def _scratch(plan: Plan, given: Any, new: Any) -> dict[str, Any]:
    """What lies in shared memory."""
    tiles, columns = (plan.stages, plan.tile, plan.size), plan.heads
    turned = plgpu.SMEM((plan.size, columns), jnp.float32)
    scratch = {
        "q": plgpu.SMEM((columns, plan.size), given),
        "new_k": plgpu.SMEM((plan.size,), new),
        "new_v": plgpu.SMEM((plan.size,), new),
        "near": plgpu.SMEM((columns,), jnp.float32),
        "queries": _swizzled(((1 + plan.whole) * columns, plan.size), jnp.int8 if plan.whole else plan.dtype),
        "k": _swizzled(tiles, plan.codes),
        "v": _swizzled(tiles, plan.codes),
        "p": _swizzled((columns, plan.tile), plan.dtype),
        "out": turned if plan.splits > 1 else plgpu.SMEM((columns, plan.size), given),
    }
    if plan.whole:
        scratch["steps"] = plgpu.SMEM((columns,), jnp.float32)
    if plan.coded:
        scratch["k_scale"] = plgpu.SMEM(tiles[:2], jnp.float32)
        scratch["v_scale"] = plgpu.SMEM(tiles[:2], jnp.float32)
        scratch["decoded"] = _swizzled(tiles[1:], plan.dtype)
    scratch["begun"] = plgpu.Barrier(num_arrivals=3)
    scratch["filled"] = plgpu.Barrier(num_arrivals=4 if plan.coded else 2, num_barriers=plan.stages)
    return scratch


def _swizzled(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the order that matrix units read."""
    width = jnp.dtype(dtype).itemsize
    swizzle = min(128, shape[-1] * width)
    transforms = plgpu.TilingTransform((8, swizzle // width)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _walk(plan: Plan, given: dict[str, Any], results: Any, at: dict[str, Any]) -> None:
    head, row, split = (lax.axis_index(name) for name in ("head", "row", "split"))
    start, number, first, blocks, layer = (given["walked"][row, i] for i in range(5))
    share = lax.div(blocks + (plan.splits - 1), jnp.int32(plan.splits))
    mine = jnp.maximum(jnp.minimum(share, blocks - split * share), 0)
    first, own = first + split * share, split == 0

    def place(i: Any) -> Any:
        """Where the i-th of these tiles begins: behind the last of the ring comes the first."""
        block, whole = first + i, -(-plan.places // plan.tile)
        return jnp.where(block >= whole, block - whole, block) * plan.tile

    def fetch(i: Any) -> None:
        slot = lax.rem(i, jnp.int32(plan.stages))
        for name in ("k", "v", "k_scale", "v_scale")[: 4 if plan.coded else 2]:
            tile = given[name].at[layer, row, head, pl.ds(place(i), plan.tile)]
            plgpu.copy_gmem_to_smem(tile, at[name].at[slot], at["filled"].at[slot])

    # Rows of queries behind this head's own are other heads', or zeros; what is made of them goes nowhere.
    queries = given["q"].at[row, pl.ds(head * plan.group, plan.heads)]
    for source, name in (
        (queries, "q"),
        (given["new_k"].at[row, head], "new_k"),
        (given["new_v"].at[row, head], "new_v"),
    ):
        plgpu.copy_gmem_to_smem(source, at[name], at["begun"])
    for i in range(plan.stages):
        pl.when(i < mine)(lambda i=i: fetch(jnp.int32(i)))
    plgpu.barrier_wait(at["begun"])
    _prepare(plan, at)

    # The new token itself is where the softmax begins, in the first split.
    most = begun = plgpu.load(at["near"], layout=OF_HEAD) + jnp.where(own, 0.0, LOW)
    here = jnp.where(own, 2.0**plan.shift, 0.0)
    new = plgpu.load(at["new_v"], layout=OF_PLACE).astype(jnp.float32)
    sums = lax.broadcast_in_dim(new * here, (plan.size, plan.heads), [0])
    total = plgpu.layout_cast(jnp.zeros((plan.tile, plan.heads), jnp.float32), PLACES_AND_HEADS)

    def step(i: Any, carry: Any) -> Any:
        sums, most, total = carry
        slot = lax.rem(i, jnp.int32(plan.stages))
        plgpu.barrier_wait(at["filled"].at[slot])
        scores, values = _scores(plan, at, slot)
        scores = jnp.where(_visible(plan, place(i), start, number), scores, -jnp.inf)
        larger = jnp.maximum(most, jnp.max(scores, axis=0))
        fading = jnp.exp2(most - larger)
        weights = jnp.exp2(scores - lax.broadcast_in_dim(larger - plan.shift, scores.shape, [1]))
        total = total * lax.broadcast_in_dim(fading, total.shape, [1]) + weights
        sums = sums * lax.broadcast_in_dim(fading, sums.shape, [1])
        # What is free now: keys, and values of eight bits which have gone elsewhere; else the tile before this one.
        next = i + plan.stages - (0 if plan.coded else 1)

        def more() -> None:
            pl.when((next < mine) & (next >= plan.stages))(lambda: fetch(next))

        return _added(plan, at, slot, weights, values, sums, more), larger, total

    sums, most, total = lax.fori_loop(0, mine, step, (sums, most, total))
    # What the new token's weight of one has faded to. It counts in the first split only.
    total = jnp.sum(total, axis=0) + jnp.exp2(begun - most) * here
    _finish(plan, at, results, (row, head, split), sums, most, jnp.maximum(total, TINY))


def _prepare(plan: Plan, at: dict[str, Any]) -> None:
    """The scores of the new token itself, and queries as they are multiplied: whole numbers are in steps of a 254th of
    a 127th of a row's largest, `(254 high + low) step`, high parts first and low ones behind them. So products with
    codes of eight bits are exact."""
    shape, layout = (plan.heads, plan.size), _in_rows(plan.size, 8)
    q = plgpu.load(at["q"], layout=layout).astype(jnp.float32)
    k = plgpu.load(at["new_k"], layout=layout.reduce(0)).astype(jnp.float32)
    near = _squashed(plan, jnp.sum(q * lax.broadcast_in_dim(k, shape, [1]), axis=1) * plan.factor)
    at["near"][...] = near
    if plan.whole:
        step = jnp.maximum(jnp.max(jnp.maximum(q, -q), axis=1) * (1 / (127 * 254)), TINY)
        at["steps"][...] = step
        number = _rounded(q * lax.broadcast_in_dim(1 / step, shape, [0]))
        high = _rounded(number * (1 / 254))
        at["queries"][: plan.heads] = high.astype(jnp.int8)
        at["queries"][plan.heads :] = (number - 254 * high).astype(jnp.int8)
    else:
        at["queries"][...] = q.astype(plan.dtype)
    plgpu.commit_smem()


def _rounded(x: Array) -> Array:
    """To whole numbers: there is no bit for a half beside a number of this size."""
    return (x + 1.5 * 2.0**23) - 1.5 * 2.0**23


def _squashed(plan: Plan, scores: Array) -> Array:
    """Capped, and times log2(e), from scores times the plan's factor."""
    if plan.cap is None:
        return scores
    # tanh(x) by way of exp(2 x): the GPU's own has eleven bits.
    return plan.cap * LOG2E * (1.0 - 2.0 / (jnp.exp2(scores * (2 * LOG2E / plan.cap)) + 1.0))


def _visible(plan: Plan, begin: Any, start: Any, number: Any) -> Array:
    shape = plan.tile, plan.heads
    place = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=PLACES_AND_HEADS) + begin
    back = place - start
    visible = jnp.where(back < 0, back + plan.places, back) < number
    return visible & (place < plan.places) if plan.places % plan.tile else visible


def _scores(plan: Plan, at: dict[str, Any], slot: Any) -> tuple[Array, Array | None]:
    """Scores against a tile of keys, times log2(e), and the tile's values in 16 bits if they are codes: those are
    turned while the matrix units are at the keys."""
    shape, queries = (plan.tile, plan.heads), at["queries"].transpose((1, 0))

    def multiply(sums: Any) -> tuple[Array, Array | None]:
        keys = at["k"].at[slot]
        if plan.coded and not plan.whole:
            keys = _halves(keys, plgpu.Layout.WGMMA_UPCAST_2X)
            plgpu.wgmma(sums, plgpu.layout_cast(keys, PLACES_AND_HEADS), queries)
        else:
            plgpu.wgmma(sums, keys, queries)
        layout = _in_rows(plan.size, 16 if plan.size == 64 else 8)
        values = _halves(at["v"].at[slot], layout) if plan.coded else None
        return sums[...], values

    if plan.whole:
        both, values = pl.run_scoped(multiply, plgpu.ACC((plan.tile, 2 * plan.heads), jnp.int32))
        scores = (both[:, : plan.heads] * 254 + both[:, plan.heads :]).astype(jnp.float32)
        scores = scores * lax.broadcast_in_dim(plgpu.load(at["steps"], layout=OF_HEAD) * plan.factor, shape, [1])
    else:
        scores, values = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))
        scores = scores * plan.factor
    if plan.coded:
        scores = scores * lax.broadcast_in_dim(plgpu.load(at["k_scale"].at[slot], layout=OF_PLACE), shape, [0])
    return _squashed(plan, scores), values


def _added(
    plan: Plan,
    at: dict[str, Any],
    slot: Any,
    weights: Array,
    values: Array | None,
    sums: Array,
    more: Callable[[], Any],
) -> Array:
    """The sums and what a tile of values adds to them. `more` is called once all threads have read its keys."""
    if plan.coded:
        scale = plgpu.load(at["v_scale"].at[slot], layout=OF_PLACE)
        weights = weights * lax.broadcast_in_dim(scale, weights.shape, [0])
        at["decoded"][...] = values
    turned = plgpu.layout_cast(weights.astype(plan.dtype), plgpu.Layout.WGMMA_TRANSPOSED)
    at["p"].transpose((1, 0))[...] = turned
    plgpu.commit_smem()
    more()

    def multiply(sums: Any) -> None:
        values = at["decoded"] if plan.coded else at["v"].at[slot]
        plgpu.wgmma(sums, values.transpose((1, 0)), at["p"].transpose((1, 0)))

    summed: Any = pl.run_state(multiply)(plgpu.ACC.init(sums))
    return summed


def _in_rows(size: int, rows: int) -> Any:
    """A layout of so many numbers of a row in a thread, a row in neighbouring ones, such that shared memory is read and
    written without two threads at one bank: `rows` (a power of two from 8 on) at a time."""
    lanes = 128 // rows
    width = min(size, 128)
    tiling = plgpu.Tiling(((rows, width), (rows // 4, width), (width // lanes,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)


def _halves(codes: Any, layout: Any) -> Array:
    """Codes as numbers of 16 bits."""
    loaded = plgpu.load(codes, layout=layout)
    if codes.dtype != jnp.int8:
        return loaded.astype(jnp.float16)

    @plgpu.inline_mgpu(
        arg_types=(layout,), return_type=plgpu.ShapeDtypeStruct(loaded.shape, jnp.float16, layout=layout)
    )
    def turned(_: Any, x: Any) -> Any:
        registers = np.empty_like(x.registers)
        for i, register in np.ndenumerate(x.registers):
            registers[i] = _halves_of_bytes(register)
        return mgpu.FragmentedArray(_registers=registers, _layout=x.layout, _is_signed=None)

    return turned(loaded)


def _halves_of_bytes(register: Any) -> Any:
    """Four whole numbers at a time in five instructions: as the last byte of a half that is 1024 and more (0x64..)
    they count from there in ones, once their sign is turned into 128 more."""
    word = ir.IntegerType.get_signless(32)
    count = ir.VectorType(register.type).shape[0]
    words = vector.bitcast(ir.VectorType.get((count // 4,), word), register)
    halves = llvm.mlir_undef(ir.VectorType.get((count // 2,), word))
    for i in range(count // 4):
        pair = llvm.inline_asm(
            llvm.StructType.get_literal([word, word]),
            [vector.extract(words, [], [i])],
            """{
            .reg .b32 x, y, z, zero;
            xor.b32 x, $2, 0x80808080;
            mov.b32 zero, 0x64806480;
            prmt.b32 y, x, 0x64646464, 0x4140;
            prmt.b32 z, x, 0x64646464, 0x4342;
            sub.f16x2 $0, y, zero;
            sub.f16x2 $1, z, zero;
            }""",
            "=r,=r,r",
        )
        for j in range(2):
            half, at = llvm.extractvalue(word, pair, [j]), mgpu.c(2 * i + j, word)
            halves = llvm.insertelement(halves, half, at)
    return vector.bitcast(ir.VectorType.get((count,), ir.F16Type.get()), halves)


def _finish(plan: Plan, at: dict[str, Any], results: Any, index: Any, sums: Array, most: Array, total: Array) -> None:
    sums = sums / lax.broadcast_in_dim(total, sums.shape, [1])
    if plan.splits > 1:
        at["out"][...] = sums
    else:
        at["out"].transpose((1, 0))[...] = sums.astype(at["out"].dtype)
    plgpu.commit_smem()
    if plan.splits > 1:
        plgpu.copy_smem_to_gmem(at["out"], results[0].at[index])
    else:
        row, head, _ = index
        into = results[0].at[row, pl.ds(head * plan.group, plan.group)]
        plgpu.copy_smem_to_gmem(at["out"].at[pl.ds(0, plan.group)], into)
    if plan.splits > 1:
        results[1][index] = most + (jnp.log2(total) - plan.shift)
    plgpu.wait_smem_to_gmem(0)
