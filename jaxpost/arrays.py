# SPDX-License-Identifier: Apache-2.0
"""The words for arrays that every room uses: shape-annotated aliases, trees, keys, metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

__all__ = ["Array", "Batch", "Bool", "Float", "HostBatch", "Int", "Key", "Metrics", "Tree"]

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
