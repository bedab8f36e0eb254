# SPDX-License-Identifier: Apache-2.0
"""Sums and means under masks."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int


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


def whiten(x: Float[Array, "*s"], mask: Float[Array, "*s"], shift_mean: bool = True) -> Float[Array, "*s"]:
    """`(x - mean) / sqrt(var + 1e-8)` over what the mask shows, 0 under its zeros; in float32.

    The variance is unbiased (N - 1). `shift_mean=False` adds the mean again afterwards, as is customary for rewards.
    TRL and verl agree; in torchtune the flag means the opposite. One value alone, or none, has variance 0. Values under
    a zero of the mask do not matter. It is a statement about a whole batch: whiten before cutting it.
    """
    inside = mask > 0
    x = jnp.where(inside, x.astype(jnp.float32), 0.0)
    count = jnp.sum(inside).astype(jnp.float32)
    mean = jnp.sum(x) / jnp.maximum(count, 1.0)
    centred = jnp.where(inside, x - mean, 0.0)
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1.0, 1.0)
    whitened = centred * jax.lax.rsqrt(variance + 1e-8)
    return whitened if shift_mean else jnp.where(inside, whitened + mean, 0.0)


def segment_sums(x: Float[Array, "b s"], segments: Int[Array, "b s"], count: int) -> Float[Array, "b n"]:
    """The sum over each example of a packed row, in float32: `[:, i]` is that of segment i + 1, up to `count` of them.
    Segments count the examples of a row from 1; 0 is padding and belongs to none."""

    def row(x: Array, segments: Array) -> Array:
        return jax.ops.segment_sum(x, segments, num_segments=count + 1)[1:]

    return jax.vmap(row)(x.astype(jnp.float32), segments)
