# SPDX-License-Identifier: Apache-2.0
"""A head and its loss without the logits of all tokens."""

from jaxpost.kernels.linear_xent.api import linear_xent as linear_xent
