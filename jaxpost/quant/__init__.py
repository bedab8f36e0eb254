# SPDX-License-Identifier: Apache-2.0
"""Weights in fewer bits."""

from jaxpost.quant.int8 import Int8 as Int8
from jaxpost.quant.qarray import Format as Format
from jaxpost.quant.qarray import QArray as QArray
from jaxpost.quant.qarray import dequantise as dequantise
from jaxpost.quant.qarray import dequantise_tree as dequantise_tree
from jaxpost.quant.qarray import quantise as quantise
from jaxpost.quant.qarray import quantise_specs as quantise_specs
from jaxpost.quant.qarray import quantise_tree as quantise_tree
