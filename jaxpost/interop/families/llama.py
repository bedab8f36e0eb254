# SPDX-License-Identifier: Apache-2.0
"""Llama 2 and 3.x, and Mistral, which is the same with a window over all layers."""

from typing import Any

from jaxpost.interop import rope_json
from jaxpost.interop.config_json import ConfigFields, activation_name, sizes, spelled
from jaxpost.interop.families.family import ATTENTION, LAYER, LLAMA, MLP, Family, biases, flagged, one_window, window
from jaxpost.models.architecture import Decoder, Layer

_BIASES = {"attention_bias": ATTENTION, "mlp_bias": MLP}
_MLP_BIASES = {f"mlp/{name}_bias": LAYER + f"mlp.{name}_proj.bias" for name in MLP}


def _llama(said: ConfigFields) -> Decoder:
    of = sizes(said)
    rope = rope_json.read(said, of["head_size"])
    return Decoder(**of, rope=rope, activation=said.activation("hidden_act"), biases=biases(said, _BIASES))


def _mistral(said: ConfigFields) -> Decoder:
    of = sizes(said)
    rope = rope_json.read(said, of["head_size"])
    pattern = (Layer(window=window(said)),)
    return Decoder(**of, rope=rope, activation=said.activation("hidden_act"), pattern=pattern)


def _write(config: Decoder) -> dict[str, Any]:
    rope = rope_json.written(config.rope, config)
    return {**spelled(config), "hidden_act": activation_name(config.activation), **rope}


LLAMA_FAMILY = Family(
    "llama",
    "LlamaForCausalLM",
    _llama,
    lambda config: _write(config) | flagged(config, _BIASES),
    tensors={**LLAMA, **_MLP_BIASES},
    defaults={"hidden_act": "silu", "max_position_embeddings": 2048},
    bias_groups=tuple(_BIASES.values()),
    heads_divide_width=True,
)

MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    _mistral,
    lambda config: _write(config) | {"sliding_window": one_window(config)},
    defaults={
        "hidden_act": "silu",
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
)
