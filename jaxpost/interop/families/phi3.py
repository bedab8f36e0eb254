# SPDX-License-Identifier: Apache-2.0
"""Phi-3: a Llama with a window whose queries, keys and values share a tensor, as do gate and up; only a part of each
head may be turned."""

from typing import Any

from jaxpost.interop import rope_json
from jaxpost.interop.config_json import ConfigFields, activation_name, sizes, spelled
from jaxpost.interop.families.family import LAYER, LLAMA, Family, one_window, window
from jaxpost.models.architecture import Decoder, Layer


def _read(said: ConfigFields) -> Decoder:
    of = sizes(said)
    rope = rope_json.read(said, of["head_size"], partial=True)
    pattern = (Layer(window=window(said)),)
    return Decoder(**of, rope=rope, activation=said.activation("hidden_act"), pattern=pattern)


def _write(config: Decoder) -> dict[str, Any]:
    return {
        **spelled(config),
        "hidden_act": activation_name(config.activation),
        "sliding_window": one_window(config),
        **rope_json.written(config.rope, config),
    }


PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    _read,
    _write,
    tensors={
        **LLAMA,
        **{f"attn/{name}": LAYER + "self_attn.qkv_proj.weight" for name in "qkv"},
        **{f"mlp/{name}": LAYER + "mlp.gate_up_proj.weight" for name in ("gate", "up")},
    },
    defaults={
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
)
