# SPDX-License-Identifier: Apache-2.0
"""Hopper GPUs (Mosaic): which inputs the kernel can serve, and how it is cut up. The kernel itself is `hopper`.

On an H200 (jax 0.11.2), microseconds of device time for 64 tokens, by XLA and by the kernel; of the bandwidth of
4.2 TB/s the kernel uses the share given, with 16 tokens the second one:

    4096 x 14336   int8 112.8, 22.0 (64, 71 %)   int4 181.4, 20.5 (38, 53 %)   in bf16 XLA needs 37.6
    4096 x 4096    int8  35.7, 13.0 (31, 38 %)                                  in bf16 XLA needs 14.2

About five microseconds of each are there at any size.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.kernels.devices import check_hopper
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.kernels.quant_matmul import reference
from jaxpost.kernels.quant_matmul.gradient import served
from jaxpost.kernels.quant_matmul.layout import FORMATS, block, block_scales, is_packed, sizes
from jaxpost.kernels.tuning import tuned
from jaxpost.quant import Int8, Nf4, QArray
from jaxpost.quant.nf4 import LEVELS
from jaxpost.shard import on_one_device

MOST_TOKENS = 64
SHARED = 226 * 1024
MOST_BLOCKS = 8
"""Of a cluster."""
AT_ONCE = 112
"""Blocks in clusters that run at once. There are 132 multiprocessors, but clusters do not straddle the groups in which
they stand: 128 blocks, in clusters of 4 or of 8, took longer than 64 with twice the work each."""


@dataclass(frozen=True)
class Tunables:
    """groups: warpgroups of a block that compute, each its 128 outs. blocks: of a cluster, among which the inputs are
    divided. rows: bytes of codes of a tile along in. steps: tiles on their way at once, fewer where there is no room
    for them. 0 is as `planned` thinks best."""

    groups: int = 0
    blocks: int = 0
    rows: int = 0
    steps: int = 8


def quant_matmul(x: Array, w: QArray, low: reference.Low | None = None) -> Array:
    check(x, w)
    return served(_product, x, w, low)


def check(x: Array, w: QArray) -> None:
    """Raises `Unsupported` for what the kernel cannot serve."""
    check_hopper()
    if not on_one_device():
        raise Unsupported("takes one device's own arrays")
    if not isinstance(w.format, FORMATS):
        raise Unsupported(f"weights as {type(w.format).__name__}")
    if x.dtype != jnp.bfloat16:
        raise Unsupported(f"{x.dtype} activations")
    if x.shape[0] > MOST_TOKENS or not x.shape[0]:
        raise Unsupported(f"{x.shape[0]} tokens; it is for 1 to {MOST_TOKENS}")
    inputs, outs = sizes(w)
    tile = 64 if isinstance(w.format, Int8) else 128
    if inputs % tile or outs % 128:
        raise Unsupported(f"a matrix of {inputs} x {outs}; {tile} inputs and 128 outs must divide it")
    if not isinstance(w.format, Int8) and (not is_packed(w) or block(w) % 64 or 128 % block(w)):
        raise Unsupported(f"blocks of {block(w)} inputs; 64 and 128 will do")


def _product(x: Array, w: QArray, low: reference.Low | None) -> Array:
    # Here, since other versions of jax lack what it is made of.
    from jaxpost.kernels.quant_matmul import hopper

    tokens, name = x.shape[0], type(w.format).__name__.lower()
    inputs, outs = sizes(w)
    padded = -(-tokens // 8) * 8
    kind = hopper.Codes(name, 0 if isinstance(w.format, Int8) else block(w))
    found = tuned("quant_matmul", "pallas_gpu", {"f": name, "t": padded, "i": inputs, "o": outs}, Tunables())
    plan = planned(found, kind, padded, inputs, outs)
    scale = block_scales(w)
    scale = scale.reshape(-1) if isinstance(w.format, Int8) else scale
    table = jnp.asarray(hopper.pairs_of(LEVELS)) if isinstance(w.format, Nf4) else jnp.zeros(256, jnp.int32)
    rows = jnp.pad(x, ((0, padded - tokens), (0, 0)))
    y = hopper.product(rows, w.codes, scale, table, kind, plan, tokens)
    return y if low is None else y + reference.through_factors(x, *low).astype(y.dtype)


def planned(found: Tunables, kind: Any, padded: int, inputs: int, outs: int) -> Any:
    """The kernel's plan: what is tuned, and for the rest two groups where they divide the outs, as many blocks as fit
    at once, and the larger tiles if two of them fit into shared memory."""
    from jaxpost.kernels.quant_matmul import hopper

    groups = found.groups or (2 if outs % (2 * hopper.OUTS) == 0 else 1)
    tiles = outs // (hopper.OUTS * groups)
    for rows in (found.rows,) if found.rows else (128, 64):
        per_tile = kind.inputs(hopper.Plan(rows=rows))
        if inputs % per_tile:
            continue
        blocks = found.blocks or max(1, min(MOST_BLOCKS, AT_ONCE // tiles, inputs // per_tile))
        for steps in range(found.steps, 1, -1):
            plan = hopper.Plan(groups, blocks, steps, rows)
            if hopper.shared_bytes(kind, plan, padded) <= SHARED:
                return plan
    raise Unsupported("no room in shared memory")
