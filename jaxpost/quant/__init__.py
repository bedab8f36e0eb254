# SPDX-License-Identifier: Apache-2.0
"""Weights in fewer bits."""

from jaxpost.quant.fp8 import Fp8 as Fp8
from jaxpost.quant.int4 import Int4 as Int4
from jaxpost.quant.int8 import Int8 as Int8
from jaxpost.quant.nf4 import Nf4 as Nf4
from jaxpost.quant.qarray import ENDS as ENDS
from jaxpost.quant.qarray import ByRow as ByRow
from jaxpost.quant.qarray import Format as Format
from jaxpost.quant.qarray import QArray as QArray
from jaxpost.quant.qarray import apart as apart
from jaxpost.quant.qarray import dequantise as dequantise
from jaxpost.quant.qarray import dequantise_tree as dequantise_tree
from jaxpost.quant.qarray import quantise as quantise
from jaxpost.quant.qarray import quantise_like as quantise_like
from jaxpost.quant.qarray import quantise_specs as quantise_specs
from jaxpost.quant.qarray import quantise_tree as quantise_tree
