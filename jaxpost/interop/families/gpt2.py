# SPDX-License-Identifier: Apache-2.0
"""GPT-2: learned positions, norms that take the mean off, a plain MLP, biases everywhere, matrices stored
`[in, out]`."""

from typing import Any

from jaxpost.interop.config_json import ConfigFields, activation_name, dtype
from jaxpost.interop.families.family import ATTENTION, Family
from jaxpost.models.architecture import Decoder

_BIASES = (*ATTENTION, "up", "down")
_H = "transformer.h.{layer}."


def _read(said: ConfigFields) -> Decoder:
    heads, d = said.size("n_head"), said.size("n_embd")
    if d % heads:
        raise said.fault("n_embd", f"n_head {heads} must divide it")
    return Decoder(
        vocab=said.size("vocab_size"),
        d=d,
        layers=said.size("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_size=d // heads,
        ffn=said.size("n_inner", 4 * d),
        rope=None,
        norm="layer",
        norm_eps=said.number("layer_norm_epsilon", 1e-5),
        tied=said.flag("tie_word_embeddings", True),
        biases=_BIASES,
        max_length=said.size("n_positions", 1024),
        dtype=dtype(said),
        activation=said.activation("activation_function"),
        gated=False,
        attn_scale=None if said.flag("scale_attn_weights", True) else 1.0,
    )


def _write(config: Decoder) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab,
        "n_embd": config.d,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.ffn,
        "n_positions": config.max_length,
        "n_ctx": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else activation_name(config.activation),
        "scale_attn_weights": config.attn_scale is None,
    }


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    _read,
    _write,
    tensors={
        "embed": "transformer.wte.weight",
        "positions": "transformer.wpe.weight",
        "attn_norm": _H + "ln_1.weight",
        "attn_norm_bias": _H + "ln_1.bias",
        **{f"attn/{name}": _H + "attn.c_attn.weight" for name in "qkv"},
        **{f"attn/{name}_bias": _H + "attn.c_attn.bias" for name in "qkv"},
        "attn/o": _H + "attn.c_proj.weight",
        "attn/o_bias": _H + "attn.c_proj.bias",
        "mlp_norm": _H + "ln_2.weight",
        "mlp_norm_bias": _H + "ln_2.bias",
        "mlp/up": _H + "mlp.c_fc.weight",
        "mlp/up_bias": _H + "mlp.c_fc.bias",
        "mlp/down": _H + "mlp.c_proj.weight",
        "mlp/down_bias": _H + "mlp.c_proj.bias",
        "norm": "transformer.ln_f.weight",
        "norm_bias": "transformer.ln_f.bias",
        "head": "lm_head.weight",
    },
    defaults={"activation_function": "gelu_new"},
    required={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    input_major=frozenset({"embed", "positions", *(f"attn/{name}" for name in ATTENTION), "mlp/up", "mlp/down"}),
    renamed=((r"^(?!transformer\.|lm_head\.)", "transformer."),),
    ignored=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    always_biased=_BIASES,
)
