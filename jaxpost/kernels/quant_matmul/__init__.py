# SPDX-License-Identifier: Apache-2.0
"""Few tokens times a quantised matrix, read in its few bits."""

from jaxpost.kernels.quant_matmul.api import quant_fused as quant_fused
from jaxpost.kernels.quant_matmul.api import quant_matmul as quant_matmul
from jaxpost.kernels.quant_matmul.layout import FORMATS as FORMATS
from jaxpost.kernels.quant_matmul.layout import as_matrix as as_matrix
from jaxpost.kernels.quant_matmul.layout import for_decoding as for_decoding
from jaxpost.kernels.quant_matmul.shapes import MOST_TOKENS as MOST_TOKENS
