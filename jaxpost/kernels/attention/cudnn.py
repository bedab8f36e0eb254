# SPDX-License-Identifier: Apache-2.0
"""Attention by cuDNN's fused kernels, through JAX. Rows of one example are plain causal attention with padding on
the right; packed rows use cuDNN's packed layout, which needs the number of segments to be bounded, and to be small:
each segment that a row may have costs memory and time as if it were as long as the row (`pallas_gpu` has no such
bound)."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, everywhere, tied
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.shard import platform


def attention(q: Array, k: Array, v: Array, rows: Any, window: int | None, scale: float, cap: float | None) -> Array:
    if platform() != "gpu":
        raise Unsupported("needs an NVIDIA GPU")
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise Unsupported(f"computes in 16 bits, not in {q.dtype}")
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        raise Unsupported(f"head size {q.shape[-1]} is not a multiple of 8 up to 256")
    if cap is not None:
        raise Unsupported("does not squash scores")
    if rows.most is None:
        raise Unsupported("the number of segments in a row is not known")
    try:
        if rows.most == 1:
            # Padding stands on the right: under the causal mask no real token can see it.
            local = None if window is None else (window - 1, 0)
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=True, scale=scale, implementation="cudnn", local_window_size=local
            )
        return _packed(q, k, v, rows.segments, rows.most, window, scale)
    except NotImplementedError as error:  # an older GPU, or an older cuDNN
        raise Unsupported(str(error)) from error


def _packed(q: Array, k: Array, v: Array, segments: Array, most: int, window: int | None, scale: float) -> Array:
    # No public entry point takes offsets (jax 0.10 to 0.12); this one is what the public function calls.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    lengths, offsets = lengths_and_offsets(segments, most)
    # The kernel leaves padding unwritten, in the result and in the gradients: these selects keep that from spreading.
    real = tied((segments > 0)[..., None, None], q)
    none = everywhere(0.0, real, q.dtype)
    q, k, v = (jnp.where(real, x, none) for x in (q, k, v))
    # That entry point takes the offsets of keys for offsets of queries, which differ where heads are grouped.
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    out: Any = dot_product_attention(
        q, k, v,
        q_seqlen=lengths, kv_seqlen=lengths, q_offsets=offsets, kv_offsets=offsets,
        scale=scale, mask_type=MaskType.PADDING_CAUSAL, sliding_window_length=window,
    )  # fmt: skip
    return jnp.where(real, out, none)


def lengths_and_offsets(segments: Array, most: int) -> tuple[Array, Array]:
    """Where the segments 1, 2, ... of each row lie: lengths `[b, most]` and starts `[b, most + 1]`, -1 where a row
    has fewer. Segments stand one behind the other from the left, padding last."""
    numbers = jnp.arange(1, most + 1, dtype=segments.dtype)
    lengths = jnp.sum(segments[:, :, None] == numbers[None, None], axis=1, dtype=jnp.int32)
    starts = jnp.where(lengths > 0, jnp.cumsum(lengths, axis=1) - lengths, -1)
    return jnp.where(lengths > 0, lengths, -1), jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
