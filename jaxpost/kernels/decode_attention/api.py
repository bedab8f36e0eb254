# SPDX-License-Identifier: Apache-2.0
"""What callers of attention over a cache see."""

from collections.abc import Callable

from jaxpost.arrays import Array, Float
from jaxpost.kernels.decode_attention import pallas_gpu, pallas_tpu, reference, xla
from jaxpost.kernels.decode_attention.cache import Cached
from jaxpost.kernels.dispatch import dispatch, serving

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "pallas_gpu": pallas_gpu.decode_attention,
    "pallas_tpu": pallas_tpu.decode_attention,
    "xla": xla.decode_attention,
    "reference": reference.decode_attention,
}
IN_PLACE = ("pallas_gpu", "pallas_tpu")


def decode_attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    cached: Cached,
    *,
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
    impl: str | None = None,
) -> Float[Array, "b s n h"]:
    """`softmax(scale q [K k]^T) [V v]` of the s next tokens of each row, which follow each other directly: each sees
    the visible places of the cache (K, V) and the new tokens up to itself; with a `window` only that many, itself
    included.

    Each key/value head serves `n / k` query heads (https://arxiv.org/abs/2305.13245). Softmax is in float32. Stored
    codes are never decoded into memory: keys' scales are multiplied into the scores, values' into the probabilities.
    `scale` is one over the root of the head size unless given; a `cap` squashes scores to `cap * tanh(score / cap)`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return dispatch("decode_attention", IMPLEMENTATIONS, impl)(q, k, v, cached, window, scale, cap)


def reads_in_place(q: Float[Array, "b s n h"], new: Float[Array, "b s k h"], cached: Cached) -> bool:
    """Whether such an input, of which shapes suffice, is served by what reads a layer where it lies in its stack. XLA
    on GPUs copies it out first, unless it has a stack of its own."""
    name = serving("decode_attention", IMPLEMENTATIONS, q, new, new, cached, window=None, scale=1.0, cap=None)
    return name in IN_PLACE
