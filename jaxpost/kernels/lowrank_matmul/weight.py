# SPDX-License-Identifier: Apache-2.0
"""The base's weight as the matrix that it is to an activation."""

from typing import Any

from jaxpost.arrays import Array
from jaxpost.quant import QArray, dequantise


def matrix(w: Array | QArray, rows: int, dtype: Any) -> Array:
    """A weight with any in axes, of so many numbers, and any out axes as `[i o]`, in the type of an activation."""
    whole = dequantise(w, dtype) if isinstance(w, QArray) else w.astype(dtype)
    return whole.reshape(rows, -1)
