# SPDX-License-Identifier: Apache-2.0
"""Rows sorted by group, each stretch times its group's own matrix."""

from jaxpost.kernels.ragged_matmul.api import ragged_matmul as ragged_matmul
