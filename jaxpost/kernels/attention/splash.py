# SPDX-License-Identifier: Apache-2.0
"""Attention on TPUs by the Mosaic kernels that come with JAX ("splash attention": flash attention that skips blocks
which its mask hides), forwards and backwards. Each key/value head is read as it is, never repeated for its queries."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.kernels.attention.blocks import dividing, fitting, padded, unit
from jaxpost.kernels.attention.reference import KEPT
from jaxpost.kernels.devices import check_tpu
from jaxpost.kernels.dispatch import Unsupported, interpreted
from jaxpost.kernels.tuning import tuned
from jaxpost.shard import on_each, ways


@dataclass(frozen=True)
class Blocks:
    """Tokens in a block: forwards of queries and of keys, and of keys computed at a time; the same backwards (`dkv`).

    Backwards each block of keys writes its part of the queries' gradient, which are then added up: the larger
    `kv_dkv`, the less memory that takes (tokens / kv_dkv times the queries).
    """

    q: int = 512
    kv: int = 1024
    kv_compute: int = 512
    q_dkv: int = 1024
    kv_dkv: int = 1024
    kv_dkv_compute: int = 512

    @property
    def largest(self) -> int:
        return max(self.q, self.kv, self.q_dkv, self.kv_dkv)


def attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    rows: Any,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Float[Array, "b s n h"]:
    """Causal by place and within segments. That is causal by position, and a window of places is one of positions,
    since positions count from 0 in each segment and, where the number of segments is bounded (`rows.most`), a
    segment's tokens stand next to each other. Rows of one example need no segments: padding stands on the right, where
    no real token sees it."""
    check_tpu()
    if rows.most is None:
        raise Unsupported("the number of segments in a row is not known, so padding may stand within one")
    check(q.shape[-1])
    sizes = {"s": q.shape[1], "h": q.shape[-1]}
    blocks = tuned("attention", "splash", sizes, Blocks())
    segments = rows.segments if rows.most > 1 else None
    return spread(q, k, v, segments, window, scale, cap, blocks, interpreted())


def check(size: int) -> None:
    """Raises `Unsupported` for a head size that the kernels waste more than half of a tile on, or are not tried at."""
    if size % 8 or not 64 <= size <= 256:
        raise Unsupported(f"head size {size} is not a multiple of 8 from 64 to 256")


def spread(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segments: Int[Array, "b s"] | None,
    window: int | None,
    scale: float,
    cap: float | None,
    blocks: Blocks,
    interpret: bool = False,
) -> Float[Array, "b s n h"]:
    """The kernel on every device's own rows and heads."""

    def local(q: Array, k: Array, v: Array, *segments: Array) -> Array:
        return attend(q, k, v, segments[0] if segments else None, window, scale, cap, blocks, interpret)

    k, v = (dividing(x, q.shape[2], ways("n")) for x in (k, v))
    arguments = (q, k, v) if segments is None else (q, k, v, segments)
    letters = ("b s n h", "b s k h", "b s k h", "b s")[: len(arguments)]
    # A Pallas call says nothing of how its results vary over the mesh, so that cannot be checked.
    return on_each(local, "b n k", ("h", q.shape[-1]), letters, "b s n h", checked=False)(*arguments)


def attend(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segments: Int[Array, "b s"] | None,
    window: int | None,
    scale: float,
    cap: float | None,
    blocks: Blocks,
    interpret: bool = False,
) -> Float[Array, "b s n h"]:
    """The kernel on one device. Tokens are padded to whole blocks; padding stands behind and is seen by none.

    The kernel knows no scale: queries are multiplied by it and rounded to their type before.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    tokens, sizes = q.shape[1], evened(q.shape[1], blocks)
    q, k, v = (jnp.swapaxes(padded(x, sizes.largest), 1, 2) for x in ((q * scale).astype(q.dtype), k, v))
    kernel: Any = splash.make_splash_mha(
        _mask(q.shape[2], q.shape[1], window),
        block_sizes=splash.BlockSizes(
            block_q=sizes.q, block_kv=sizes.kv, block_kv_compute=sizes.kv_compute,
            block_q_dkv=sizes.q_dkv, block_kv_dkv=sizes.kv_dkv, block_kv_dkv_compute=sizes.kv_dkv_compute,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1, q_seq_shards=1, attn_logits_soft_cap=cap, residual_checkpoint_name=KEPT, interpret=interpret,
    )  # fmt: skip

    if segments is None:
        out = jax.vmap(kernel)(q, k, v)
    else:
        numbers = padded(segments, sizes.largest)
        out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(numbers, numbers))
    return jnp.swapaxes(out, 1, 2)[:, :tokens]


def evened(tokens: int, blocks: Blocks) -> Blocks:
    """Blocks for rows of that many tokens: at most as large as asked for, all dividing the padded length."""
    whole = unit(tokens, blocks.largest)
    kv, kv_dkv = fitting(blocks.kv, whole), fitting(blocks.kv_dkv, whole)
    return Blocks(
        q=fitting(blocks.q, whole), kv=kv, kv_compute=fitting(blocks.kv_compute, kv),
        q_dkv=fitting(blocks.q_dkv, whole), kv_dkv=kv_dkv, kv_dkv_compute=fitting(blocks.kv_dkv_compute, kv_dkv),
    )  # fmt: skip


def _mask(length: int, heads: int, window: int | None) -> Any:
    """What every head of a row of that length sees by place alone: the kernel skips the blocks that this hides."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    one = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    return masks.MultiHeadMask([one] * heads)
