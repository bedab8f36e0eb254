# SPDX-License-Identifier: Apache-2.0
"""What callers of attention see."""

from collections.abc import Callable
from typing import Any

from flax import struct

from jaxpost.arrays import Array, Float
from jaxpost.kernels.attention import cudnn, pallas_gpu, quantised, reference, splash, xla
from jaxpost.kernels.dispatch import dispatch


@struct.dataclass
class Rows:
    """Which tokens see which: a query sees the keys of its own segment at positions up to its own.

    segments `[b, s]`: 0 is padding, equal numbers are one example. positions `[b, s]`: 0, 1, ... within each segment.
    `most` bounds the segments of a row where the caller knows it (1: rows hold one example each), and says that padding
    stands behind them: this lets fast implementations serve it. `None` is unknown, and padding may stand anywhere.
    virtual `[b, s]`: 1, 2, ... where the first, second, ... row of a prompt or prefix stands, 0 where a token does;
    `None` where there are tokens only. To attention they are places like others.
    """

    segments: Any
    positions: Any
    most: int | None = struct.field(pytree_node=False, default=None)
    virtual: Any = None


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "pallas_gpu": pallas_gpu.attention,
    "cudnn": cudnn.attention,
    "splash": splash.attention,
    "xla": xla.attention,
    "reference": reference.attention,
}

ASKED_FOR: dict[str, Callable[..., Array]] = {"quantised": quantised.attention}
"""Implementations that are not exact: none of them is ever chosen, only named."""


def attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    rows: Rows,
    *,
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
    impl: str | None = None,
) -> Float[Array, "b s n h"]:
    """Causal attention within segments: `softmax(scale q k^T) v`, each key/value head serving `n / k` query heads
    (grouped-query attention, https://arxiv.org/abs/2305.13245). Softmax is in float32.

    With a `window` a token sees that many only, itself included. `scale` is one over the root of the head size unless
    given; a `cap` squashes scores to `cap * tanh(score / cap)`. What a padding token attends to is not defined. Of the
    implementations only the reference can be differentiated forwards (`jax.jvp`).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    known = IMPLEMENTATIONS if impl is None else {**IMPLEMENTATIONS, **ASKED_FOR}
    return dispatch("attention", known, impl)(q, k, v, rows, window, scale, cap)
