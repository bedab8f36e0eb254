# SPDX-License-Identifier: Apache-2.0
"""Three products and a sum, in the activation's type: always right, always last."""

import jax

from jaxpost.arrays import Array
from jaxpost.kernels.lowrank_matmul.weight import matrix
from jaxpost.quant import QArray


def lowrank_matmul(x: Array, w: Array | QArray, a: Array, b: Array) -> Array:
    def base(x: Array, w: Array | QArray) -> Array:
        return x @ matrix(w, x.shape[1], x.dtype)

    # Checkpointed, else the dequantised weight would be kept for the backward pass.
    base = jax.checkpoint(base, prevent_cse=False) if isinstance(w, QArray) else base
    return base(x, w) + (x @ a.astype(x.dtype)) @ b.astype(x.dtype)
