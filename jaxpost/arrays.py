# SPDX-License-Identifier: Apache-2.0
"""What every room says of arrays: shape-annotated aliases, trees, keys, metrics; and what is a layer's own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

__all__ = ["Array", "Batch", "Bool", "Float", "HostBatch", "Int", "Key", "Metrics", "Tree", "everywhere", "tied"]

Tree = PyTree[Any]
"""Nested dicts of arrays (or of specs, shardings, edits): the form of parameters and of what is derived from them."""

Key = PRNGKeyArray
"""A typed PRNG key, as `jax.random.key` makes it."""

Metrics = Mapping[str, Any]
"""Scalars by name. They are sums over examples already divided by whole-batch denominators, so microbatches add."""

Batch = Mapping[str, Array]
"""Arrays by field, rows of the global batch first."""

HostBatch = Mapping[str, np.ndarray]
"""The same before it is on any device: the rows that this process contributes."""


# What depends on nothing that a layer has of its own, jax carries out of the scan over layers when it differentiates
# it, broadcasts first of all: each layer would read truths and zeros from memory at the size of its activations.


def everywhere(value: float, like: Array, dtype: Any = jnp.float32) -> Array:
    """One number in the shape of some whole numbers or truths, on which it seems to depend: a branch for `jnp.where`
    within layers. XLA sees that it is a constant."""
    return (like & like.dtype.type(0)).astype(dtype) + np.asarray(value, dtype)


def tied(shared: Array, own: Array) -> Array:
    """What all layers share, as if it depended on what a layer has of its own: so that it is broadcast within it."""
    return jax.lax.optimization_barrier((shared, jax.lax.stop_gradient(own)))[0]
