# SPDX-License-Identifier: Apache-2.0
"""A matrix product with a low-rank one beside it."""

from jaxpost.kernels.lowrank_matmul.api import lowrank_fused as lowrank_fused
from jaxpost.kernels.lowrank_matmul.api import lowrank_matmul as lowrank_matmul
