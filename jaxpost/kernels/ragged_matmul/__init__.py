# SPDX-License-Identifier: Apache-2.0
"""Rows laid out by group, each stretch times its group's own matrix."""

from jaxpost.kernels.ragged_matmul.api import ragged_matmul as ragged_matmul
from jaxpost.kernels.ragged_matmul.layout import Groups as Groups
from jaxpost.kernels.ragged_matmul.layout import grouped as grouped
