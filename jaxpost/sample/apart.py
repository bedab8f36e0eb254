# SPDX-License-Identifier: Apache-2.0
"""The same model with its layers apart, for decoding where a stack of layers is slow to read."""

from dataclasses import replace
from typing import Any

import jax

from jaxpost.arrays import Tree
from jaxpost.kernels.quant_matmul import for_decoding
from jaxpost.models.architecture import Decoder, Layer, blocks, is_stacked


def layers_apart(config: Decoder) -> Decoder:
    """The config of the same model of which no two layers are stacked: its pattern is longer than it has layers."""
    return replace(config, pattern=(*map(config.layer, range(config.layers)), Layer()))


def weights_apart(config: Decoder, weights: Tree) -> Tree:
    """The weights, bound or not, as `layers_apart(config)` has them.

    A loop over stacked layers reads its weights and its cache through a slice, which XLA on GPUs copies out before each
    product: three times the traffic, of which a decoding step is made. Traced, this costs one such copy. Quantised
    weights become what a product with few tokens reads fastest.
    """
    tail: dict[str, Any] = {}
    for path, numbers in blocks(config).items():
        block = weights
        for part in path.split("/"):
            block = block[part]
        for i, number in enumerate(numbers):
            tail[str(number)] = jax.tree.map(lambda x, i=i: x[i], block) if is_stacked(path) else block
    return for_decoding({**weights, "layers": {"tail": tail}})
