# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens in chunks along the sequence, so that rows stay on the devices where they are."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array


def cut(x: Array, chunk: int, shape: tuple[int, ...]) -> Array:
    """`[b, s, ...]` as chunks `[n, b, c, ...]` of about `chunk` tokens a device, the last one filled up with zeros.
    `shape` is that of all arrays' first two axes."""
    rows, length = shape
    width = min(length, max(1, chunk * max(1, jax.sharding.get_abstract_mesh().size) // rows))
    spare = -length % width
    x = jnp.pad(x, ((0, 0), (0, spare)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(rows, -1, width, *x.shape[2:]), 1, 0)


def joined(x: Array, length: int) -> Array:
    """Numbers of the tokens of all chunks, `[n, b, c]`, as `[b, s]` again."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length]
