# SPDX-License-Identifier: Apache-2.0
"""Gemma 1 (scaled embeddings, norms that multiply by one plus their weights), Gemma 2 (four norms, capped scores and
logits, a window in every other layer), and the text part of Gemma 3 (norms over queries and keys, a window and a rope
of their own in five of six layers)."""

from dataclasses import replace
from typing import Any

from jaxpost.interop import rope_json
from jaxpost.interop.config_json import ConfigFields, activation_name, dtype, kinds, sizes, spelled
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
    window,
)
from jaxpost.models.architecture import Decoder, Layer
from jaxpost.models.rope import Rope

_BIASES = {"attention_bias": ATTENTION}
_REQUIRED = {"use_bidirectional_attention": False}
_FOUR_NORMS = {
    **LLAMA,
    "attn_post_norm": LAYER + "post_attention_layernorm.weight",
    "mlp_norm": LAYER + "pre_feedforward_layernorm.weight",
    "mlp_post_norm": LAYER + "post_feedforward_layernorm.weight",
}
_TEXT_RENAMED = (
    (r"^model\.language_model\.", "model."),
    (r"^language_model\.(model\.|lm_head\.)", r"\1"),
    (r"^(?!model\.|lm_head\.|vision_tower\.|multi_modal_projector\.)", "model."),
)
_VISION = r"(model\.)?(vision_tower|multi_modal_projector)\..*"


def _common(said: ConfigFields, activation: str) -> dict[str, Any]:
    of = sizes(said)
    act = said.activation(activation)
    of |= {"norm": "offset", "embed_scale": of["d"] ** 0.5, "biases": biases(said, _BIASES), "activation": act}
    return of


def _gemma(said: ConfigFields) -> Decoder:
    of = _common(said, "hidden_act")
    # "gelu" is what the first files say, and the tanh form is meant.
    of["activation"] = "gelu_tanh" if of["activation"] == "gelu" else of["activation"]
    return Decoder(**of, rope=rope_json.read(said, of["head_size"]))


def _capped(said: ConfigFields, head_size: int) -> dict[str, Any]:
    scalar = said.number("query_pre_attn_scalar", 256)
    caps = {name: said.values.get(f"{field}_logit_softcapping") for name, field in _CAPS.items()}
    for name, field in _CAPS.items():
        caps[name] = None if caps[name] is None else said.number(f"{field}_logit_softcapping")
    return {**caps, "attn_scale": None if scalar == head_size else scalar**-0.5, "post_norms": True}


_CAPS = {"attn_cap": "attn", "logit_cap": "final"}


def _gemma2(said: ConfigFields) -> Decoder:
    of = _common(said, "hidden_activation")
    windowed = kinds(said, of["layers"], [number % 2 == 0 for number in range(of["layers"])])
    pattern = shortest([Layer(window=window(said) if sees else None) for sees in windowed])
    rope = rope_json.read(said, of["head_size"])
    return Decoder(**of, **_capped(said, of["head_size"]), rope=rope, pattern=pattern)


def _gemma3(said: ConfigFields) -> Decoder:
    of = _common(said, "hidden_activation")
    rope, local = _ropes(said, of["head_size"])
    period = "_sliding_window_pattern" if "_sliding_window_pattern" in said.values else "sliding_window_pattern"
    every = said.size(period, 6)
    windowed = kinds(said, of["layers"], [bool((number + 1) % every) for number in range(of["layers"])])
    near = Layer(window(said), None if local == rope else local)
    pattern = shortest([near if sees else Layer() for sees in windowed])
    return Decoder(**of, **_capped(said, of["head_size"]), rope=rope, pattern=pattern, qk_norm=True)


def _ropes(said: ConfigFields, head_size: int) -> tuple[Rope, Rope]:
    """That of the layers that see all, and that of the others."""
    nested = said.inside("rope_parameters") or ConfigFields(said.file, {}, said.within)
    nothing = ConfigFields(said.file, {}, said.within)
    full = nested.inside("full_attention") or nothing
    near = nested.inside("sliding_attention") or nothing
    scaling = said.inside("rope_scaling")  # version 4's, which stretches the layers that see all
    full = full if scaling is None else replace(scaling, values={**full.values, **scaling.values})
    theta = said.number("rope_theta", 1_000_000.0)
    base = said.number("rope_local_base_freq", 10_000.0)
    return rope_json.of(full, said, head_size, theta), rope_json.of(near, said, head_size, base)


def _text_of(said: ConfigFields) -> Decoder:
    """The text part of a model that also sees: its config is an object within."""
    text = said.inside("text_config")
    if text is None:
        raise said.fault("text_config", "a gemma3 directory says there what its text part is; gemma3_text is one alone")
    text = text.with_defaults(GEMMA3.defaults)
    for name, value in GEMMA3.required.items():
        text.require(name, value)
    own = text.values.get("dtype") or text.values.get("torch_dtype")
    return replace(_gemma3(text), dtype=dtype(text if own else said))


def _write(config: Decoder) -> dict[str, Any]:
    return {**spelled(config), **flagged(config, _BIASES), **rope_json.written(config.rope, config)}


def _write_layers(config: Decoder) -> dict[str, Any]:
    """Of Gemma 2 and 3."""
    scale = config.attn_scale or config.head_size**-0.5
    return {
        **_write(config),
        "hidden_activation": activation_name(config.activation),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": config.attn_cap,
        "final_logit_softcapping": config.logit_cap,
        "sliding_window": one_window(config),
        "layer_types": layer_types(config),
    }


def _write_text(config: Decoder) -> dict[str, Any]:
    said, rope = _write_layers(config), config.rope or Rope()
    near = next((layer.rope for layer in config.pattern if layer.rope), rope)
    plain = one_window(config) is None and near == rope  # no layer is near
    near = Rope() if plain else near
    both = {"full_attention": rope, "sliding_attention": near}
    nested = {kind: {"rope_theta": of.theta, **rope_json.parameters(of, config)} for kind, of in both.items()}
    said |= {"rope_parameters": nested, "rope_local_base_freq": near.theta}
    types = said["layer_types"]
    period = types.index("full_attention") + 1 if "full_attention" in types else config.layers + 1
    return said | {"sliding_window_pattern": period}


_TANH = "gelu_pytorch_tanh"
_DEFAULTS = {"max_position_embeddings": 8192, "head_dim": 256, "tie_word_embeddings": True}

GEMMA = Family(
    "gemma",
    "GemmaForCausalLM",
    _gemma,
    # Version 4 takes the exact form where hidden_activation is missing, whatever hidden_act is.
    lambda c: _write(c) | dict.fromkeys(("hidden_act", "hidden_activation"), activation_name(c.activation)),
    defaults={**_DEFAULTS, "hidden_act": _TANH, "num_key_value_heads": 16},
    required=_REQUIRED,
    bias_groups=(ATTENTION,),
)

GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    _gemma2,
    _write_layers,
    tensors=_FOUR_NORMS,
    defaults={
        **_DEFAULTS,
        "hidden_activation": _TANH,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    required=_REQUIRED,
    bias_groups=(ATTENTION,),
    heads_divide_width=True,
)

GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    _gemma3,
    _write_text,
    tensors={**_FOUR_NORMS, **QK_NORMS},
    defaults={
        **_DEFAULTS,
        # Published files leave these out.
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
        "hidden_activation": _TANH,
        "sliding_window": 4096,
    },
    required=_REQUIRED,
    renamed=_TEXT_RENAMED,
    ignored=rf"{_VISION}|.*\.rotary_emb.*inv_freq",
    bias_groups=(ATTENTION,),
    heads_divide_width=True,
)

GEMMA3_WITH_VISION = replace(GEMMA3, kind="gemma3", read=_text_of, defaults={}, required={})
"""Read only: what is saved is the text part."""
