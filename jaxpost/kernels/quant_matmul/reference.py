# SPDX-License-Identifier: Apache-2.0
"""Dequantise, then multiply: what XLA makes of it is a copy of the matrix in memory, and a product that reads it."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.quant import QArray, dequantise

Low = tuple[Array, Array]


def quant_matmul(x: Array, w: QArray, low: Low | None = None) -> Array:
    # Checkpointed, else every dequantised weight would be kept for the backward pass.
    y = jax.checkpoint(lambda x, w: jnp.matmul(x, dequantise(w, x.dtype)), prevent_cse=False)(x, w)
    return y if low is None else y + through_factors(x, *low).astype(y.dtype)


def through_factors(x: Array, a: Array, b: Array) -> Array:
    """`(x a) b`, in the activation's dtype."""
    return jnp.matmul(jnp.matmul(x, a.astype(x.dtype)), b.astype(x.dtype))
