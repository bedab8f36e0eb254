# SPDX-License-Identifier: Apache-2.0
"""Qwen 2 and 2.5 (biases on queries, keys and values), Qwen 3 (norms over queries and keys), and its mixture of
experts."""

from typing import Any

from jaxpost.interop import rope_json
from jaxpost.interop.config_json import ConfigFields, activation_name, kinds, sizes, spelled
from jaxpost.interop.families.family import (
    ATTENTION,
    LAYER,
    LLAMA,
    QK_NORMS,
    Family,
    biases,
    flagged,
    layer_types,
    one_window,
    shortest,
)
from jaxpost.models.architecture import Decoder, Experts, Layer

_BIASES = {"attention_bias": ATTENTION}
_DEFAULTS = {"hidden_act": "silu", "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28}
_EXPERT = LAYER + "mlp.experts.{expert}."


def _common(said: ConfigFields) -> dict[str, Any]:
    of = sizes(said)
    rope = rope_json.read(said, of["head_size"])
    return {**of, "rope": rope, "activation": said.activation("hidden_act")}


def _window(said: ConfigFields) -> int | None:
    none = not said.flag("use_sliding_window") or said.values.get("sliding_window") is None
    return None if none else said.size("sliding_window")


def _pattern(said: ConfigFields, layers: int) -> tuple[Layer, ...]:
    """Windows in all layers from `max_window_layers` on (as the code reads it: the name says the opposite)."""
    width = _window(said)
    first = said.values["max_window_layers"]
    if type(first) is not int or first < 0:
        raise said.fault("max_window_layers", "it must be a whole number")
    windowed = kinds(said, layers, [number >= first for number in range(layers)])
    return shortest([Layer(window=width if sees else None) for sees in windowed])


def _qwen2(said: ConfigFields) -> Decoder:
    of = _common(said)
    return Decoder(**of, pattern=_pattern(said, of["layers"]), biases=("q", "k", "v"))


def _qwen3(said: ConfigFields) -> Decoder:
    of = _common(said)
    return Decoder(**of, pattern=_pattern(said, of["layers"]), biases=biases(said, _BIASES), qk_norm=True)


def _moe(said: ConfigFields) -> Decoder:
    of, width = _common(said), _window(said)
    step = said.size("decoder_sparse_step", 1)
    dense = said.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(number) is int for number in dense):
        raise said.fault("mlp_only_layers", "it must be a list of layers' numbers")
    count = "num_experts" if said.values.get("num_experts") is not None else "num_local_experts"
    experts = Experts(
        count=said.size(count, 128),
        active=said.size("num_experts_per_tok", 8),
        ffn=said.size("moe_intermediate_size", 768),
        renormalised=said.flag("norm_topk_prob"),
    )
    if experts.active > experts.count:
        raise said.fault("num_experts_per_tok", f"there are {experts.count} experts")
    layers = [Layer(width, dense=n in dense or (n + 1) % step > 0) for n in range(of["layers"])]
    pattern = shortest(layers)
    return Decoder(**of, pattern=pattern, biases=biases(said, _BIASES), qk_norm=True, experts=experts)


def _write(config: Decoder) -> dict[str, Any]:
    width = one_window(config)
    types = layer_types(config)
    full = types.count("full_attention")
    return {
        **spelled(config),
        "hidden_act": activation_name(config.activation),
        **rope_json.written(config.rope, config),
        "use_sliding_window": width is not None,
        "sliding_window": width,
        # As far as a number can say it: older versions know no layer_types.
        "max_window_layers": full if "sliding_attention" not in types[:full] else config.layers,
        "layer_types": types,
    }


def _write_moe(config: Decoder) -> dict[str, Any]:
    experts = config.experts or Experts(1, 1, 1)
    said = {name: value for name, value in _write(config).items() if name not in ("layer_types", "max_window_layers")}
    return {
        **said,
        **flagged(config, _BIASES),
        "num_experts": experts.count,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "moe_intermediate_size": experts.ffn,
        "norm_topk_prob": experts.renormalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [number for number in range(config.layers) if config.layer(number).dense],
    }


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _qwen2, _write, defaults=_DEFAULTS, always_biased=("q", "k", "v"))

QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    _qwen3,
    lambda config: _write(config) | flagged(config, _BIASES),
    tensors={**LLAMA, **QK_NORMS},
    defaults={**_DEFAULTS, "head_dim": 128},
    bias_groups=(ATTENTION,),
)

QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    _moe,
    _write_moe,
    tensors={
        **LLAMA,
        **QK_NORMS,
        "experts/router": LAYER + "mlp.gate.weight",
        "experts/gate": _EXPERT + "gate_proj.weight",
        "experts/up": _EXPERT + "up_proj.weight",
        "experts/down": _EXPERT + "down_proj.weight",
    },
    defaults={**_DEFAULTS, "num_key_value_heads": 4},
    fused={
        "experts/gate": LAYER + "mlp.experts.gate_up_proj",
        "experts/up": LAYER + "mlp.experts.gate_up_proj",
        "experts/down": LAYER + "mlp.experts.down_proj",
    },
    bias_groups=(ATTENTION,),
)
