# SPDX-License-Identifier: Apache-2.0
"""Mixtral: a Mistral with a mixture of experts in every layer."""

from typing import Any

from jaxpost.interop import rope_json
from jaxpost.interop.config_json import ConfigFields, activation_name, sizes, spelled
from jaxpost.interop.families.family import LAYER, LLAMA, Family, one_window, window
from jaxpost.models.architecture import Decoder, Experts, Layer

_EXPERT = LAYER + "block_sparse_moe.experts.{expert}."


def _read(said: ConfigFields) -> Decoder:
    of = sizes(said)
    count = "num_local_experts" if said.values.get("num_local_experts") is not None else "num_experts"
    experts = Experts(said.size(count, 8), said.size("num_experts_per_tok", 2), of["ffn"])
    if experts.active > experts.count:
        raise said.fault("num_experts_per_tok", f"there are {experts.count} experts")
    rope = rope_json.read(said, of["head_size"], theta=1_000_000.0)
    pattern = (Layer(window=window(said)),)
    return Decoder(**of, rope=rope, activation=said.activation("hidden_act"), pattern=pattern, experts=experts)


def _write(config: Decoder) -> dict[str, Any]:
    experts = config.experts or Experts(1, 1, 1)
    return {
        **spelled(config),
        "hidden_act": activation_name(config.activation),
        "sliding_window": one_window(config),
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.active,
        **rope_json.written(config.rope, config),
    }


MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    _read,
    _write,
    tensors={
        **LLAMA,
        "experts/router": LAYER + "block_sparse_moe.gate.weight",
        "experts/gate": _EXPERT + "w1.weight",
        "experts/down": _EXPERT + "w2.weight",
        "experts/up": _EXPERT + "w3.weight",
    },
    defaults={
        "hidden_act": "silu",
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
    },
    fused={
        "experts/router": LAYER + "mlp.gate.weight",
        "experts/gate": LAYER + "mlp.experts.gate_up_proj",
        "experts/up": LAYER + "mlp.experts.gate_up_proj",
        "experts/down": LAYER + "mlp.experts.down_proj",
    },
)
