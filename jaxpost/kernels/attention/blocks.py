# SPDX-License-Identifier: Apache-2.0
"""Rows in blocks of tokens, and heads over devices: what implementations have in common."""

import jax.numpy as jnp

from jaxpost.arrays import Array, Float

LANES = 128
"""Blocks on TPUs are multiples of what a vector register is wide."""


def unit(tokens: int, largest: int, least: int = LANES) -> int:
    """The size of the blocks that a row of that many tokens is padded to whole ones of: as few as blocks of the largest
    size would be, but even, in multiples of the least. So 1,536 tokens are two blocks of 768, not two of 1,024."""
    count = -(-tokens // largest)
    return -(-tokens // (count * least)) * least


def fitting(size: int, whole: int, least: int = LANES) -> int:
    """The largest block up to that size that divides `whole`, in multiples of the least."""
    return max(block for block in range(least, min(size, whole) + 1, least) if whole % block == 0)


def padded(x: Array, block: int) -> Array:
    """`x` `[b, s, ...]` with zeros behind its tokens, up to whole blocks."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), *((0, 0),) * (x.ndim - 2)))


def dividing(x: Float[Array, "b s k h"], heads: int, devices: int) -> Float[Array, "b s kr h"]:
    """Key/value heads that can be cut over the devices as the query heads are: one stays whole, and fewer than there
    are devices stand repeated, so that each device has those of its queries."""
    own = x.shape[2]
    if own == 1 or own % devices == 0 or heads % devices:
        return x
    times = next(r for r in range(2, heads // own + 1) if own * r % devices == 0 and heads % (own * r) == 0)
    return jnp.repeat(x, times, axis=2)
