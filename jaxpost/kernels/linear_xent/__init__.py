# SPDX-License-Identifier: Apache-2.0
"""A head and what is made of its logits without the logits of all tokens."""

from jaxpost.kernels.linear_xent.api import linear_xent as linear_xent
from jaxpost.kernels.linear_xent.chosen import chosen as chosen
from jaxpost.kernels.linear_xent.values import linear_values as linear_values
