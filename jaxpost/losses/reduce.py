# SPDX-License-Identifier: Apache-2.0
"""The one reduction."""

import jax.numpy as jnp

from jaxpost.arrays import Array, Float


def masked_mean(
    x: Float[Array, "*s"], mask: Float[Array, "*s"], denominator: Float[Array, ""] | float | None = None
) -> Float[Array, ""]:
    """`sum(x * mask) / denominator`, in float32.

    Pass the denominator of the whole global batch when x is a part of it (a microbatch, a shard): then parts add up
    to the loss of the whole, however it was cut. Without one it is `sum(mask)`, or 1 where that is 0. Values under a
    zero of the mask do not matter, NaN and infinity included.
    """
    mask = mask.astype(jnp.float32)
    total = jnp.sum(jnp.where(mask == 0, 0.0, x.astype(jnp.float32)) * mask)
    if denominator is None:
        count = jnp.sum(mask)
        denominator = jnp.where(count == 0, 1.0, count)
    return total / denominator
