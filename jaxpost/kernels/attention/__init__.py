# SPDX-License-Identifier: Apache-2.0
"""Attention over packed rows."""

from jaxpost.kernels.attention.api import Rows as Rows
from jaxpost.kernels.attention.api import attention as attention
