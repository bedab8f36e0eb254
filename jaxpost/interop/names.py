# SPDX-License-Identifier: Apache-2.0
"""Where each parameter of the decoder stands in a Hugging Face Llama checkpoint, and how it lies there.

There, layers are apart, every tensor has at most two axes, and a matrix is `[out, in]`. Shapes follow from the specs;
only names are said here.
"""

import math
import re

import numpy as np

from jaxpost.params import ParamSpec

LAYER = "model.layers.{}."

LLAMA = {
    "embed": "model.embed_tokens.weight",
    "layers/attn_norm": LAYER + "input_layernorm.weight",
    "layers/attn/q": LAYER + "self_attn.q_proj.weight",
    "layers/attn/k": LAYER + "self_attn.k_proj.weight",
    "layers/attn/v": LAYER + "self_attn.v_proj.weight",
    "layers/attn/o": LAYER + "self_attn.o_proj.weight",
    "layers/attn/q_bias": LAYER + "self_attn.q_proj.bias",
    "layers/attn/k_bias": LAYER + "self_attn.k_proj.bias",
    "layers/attn/v_bias": LAYER + "self_attn.v_proj.bias",
    "layers/attn/o_bias": LAYER + "self_attn.o_proj.bias",
    "layers/mlp_norm": LAYER + "post_attention_layernorm.weight",
    "layers/mlp/gate": LAYER + "mlp.gate_proj.weight",
    "layers/mlp/up": LAYER + "mlp.up_proj.weight",
    "layers/mlp/down": LAYER + "mlp.down_proj.weight",
    "layers/mlp/gate_bias": LAYER + "mlp.gate_proj.bias",
    "layers/mlp/up_bias": LAYER + "mlp.up_proj.bias",
    "layers/mlp/down_bias": LAYER + "mlp.down_proj.bias",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}

# A checkpoint has all the biases of a kind or none.
BIASES = {"attention_bias": ("q", "k", "v", "o"), "mlp_bias": ("gate", "up", "down")}

# Looked up by row: it lies as it does here.
_TABLES = {"embed"}

# Rotary frequencies, which older checkpoints hold although they follow from the config.
IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def names(path: str, spec: ParamSpec) -> tuple[str, ...]:
    """The tensors that make up one parameter: one a layer, or just one."""
    return tuple(LLAMA[path].format(layer) for layer in range(spec.shape[0])) if spec.sizes(0) else (LLAMA[path],)


def shape(path: str, spec: ParamSpec) -> tuple[int, ...]:
    """The shape of each of those tensors."""
    groups = (spec.sizes(1), spec.sizes(2)) if path in _TABLES else (spec.sizes(2), spec.sizes(1))
    return tuple(math.prod(group) for group in groups if group)


def read_into(target: np.ndarray, tensor: np.ndarray, path: str, spec: ParamSpec) -> None:
    """Writes one stored tensor into one layer of a parameter, turned around and rounded to its type."""
    target = target.reshape([math.prod(group) for group in (spec.sizes(1), spec.sizes(2)) if group])
    _copy(target, tensor if path in _TABLES else tensor.T)


def stored(layer: np.ndarray, path: str, spec: ParamSpec, dtype: np.dtype) -> np.ndarray:
    """The inverse of `read_into`: one layer of a parameter as the tensor that a checkpoint holds."""
    tensor = np.empty(shape(path, spec), dtype)
    flat = layer.reshape([math.prod(group) for group in (spec.sizes(1), spec.sizes(2)) if group])
    _copy(tensor, flat if path in _TABLES else flat.T)
    return tensor


def _copy(target: np.ndarray, source: np.ndarray, block: int = 32) -> None:
    """`target[...] = source` in strips of columns that fit the cache: three times faster for a transposed source."""
    if target.ndim < 2:
        target[...] = source
        return
    for start in range(0, target.shape[1], block):
        target[:, start : start + block] = source[:, start : start + block]
