# SPDX-License-Identifier: Apache-2.0
"""Which tiny models the golden numbers are of: for each family and each thing that one of its configs can say."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,  # large enough that every part of the model shows in the logits
    "rms_norm_eps": 0.03,  # so large that it shows too
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """`features` are changes of the config that must show in the logits, `slight` ones that cannot show as much.
    `by_length`: frequencies go by a batch's
    longest sequence in transformers, so that only numbers of sequences alone mean anything. `active` experts of a
    token. `loud` weights are drawn larger (where the token itself would drown the rest, and models repeat it).
    `old_spelling` are the rotary fields of a config.json of version 4."""

    config: PreTrainedConfig
    dtype: torch.dtype = torch.bfloat16
    shard: str | None = None
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    slight: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_length: bool = False
    active: int = 0
    loud: tuple[str, ...] = ()
    old_spelling: dict[str, Any] | None = None


def _llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**SIZES | changes)


def _rope(kind: str, theta: float = 10000.0, **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **fields}


PLAIN_ROPE = {"rope": {"rope_parameters": _rope("default")}}
GELU = {"activation": {"hidden_act": "gelu_python"}}  # Gemma takes "gelu" for the approximation too
EXACT = {"activation": {"hidden_activation": "gelu"}}
NO_WINDOW = {"window": {"sliding_window": None}}
LLAMA3 = _rope(  # at these sizes: wavelengths of all three kinds
    "llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
YARN = _rope("yarn", 100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.25)
TRUNCATED, UNTRUNCATED = YARN, YARN | {"truncate": False, "attention_factor": 1.4}
LONG = _rope(
    "longrope", 500.0, partial_rotary_factor=0.75,
    short_factor=[1.0, 1.1, 1.3], long_factor=[1.2, 2.5, 6.0], original_max_position_embeddings=22,
)  # fmt: skip
GEMMA3_ROPE = {
    "sliding_attention": _rope("default", 100.0),
    "full_attention": _rope("linear", 1000.0, factor=4.0),
}
GEMMA3_PLAIN = {"sliding_attention": _rope("default", 100.0), "full_attention": _rope("default", 1000.0)}
GEMMA3_ONE = {"sliding_attention": _rope("default", 1000.0), "full_attention": _rope("linear", 1000.0, factor=4.0)}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}

CASES = {
    "llama-plain": Case(_llama(num_key_value_heads=4), dtype=torch.float32),
    "llama-tied": Case(_llama(tie_word_embeddings=True), dtype=torch.float32, loud=("proj",)),
    "llama-biased": Case(_llama(attention_bias=True, mlp_bias=True)),
    "llama-two": Case(
        _llama(num_key_value_heads=4, rope_parameters=_rope("default")),  # whose theta it does not say
        dtype=torch.float16,
        old_spelling={"rope_scaling": None, "pretraining_tp": 1},
    ),
    "llama-llama3": Case(
        _llama(head_dim=12, num_key_value_heads=1, rope_parameters=LLAMA3),
        dtype=torch.float32,
        shard="20KB",
        features=PLAIN_ROPE,
    ),
    "llama-linear": Case(_llama(rope_parameters=_rope("linear", factor=2.5)), features=PLAIN_ROPE),
    "llama-dynamic": Case(
        _llama(rope_parameters=_rope("dynamic", 100.0, factor=4.0), max_position_embeddings=16),
        features={"rope": {"rope_parameters": _rope("default", 100.0)}},
        by_length=True,
    ),
    "llama-yarn": Case(
        _llama(rope_parameters=TRUNCATED, head_dim=12),
        features={
            "rope": {"rope_parameters": _rope("default", 100.0)},
            "attention factor": {"rope_parameters": TRUNCATED | {"attention_factor": 1.0}},
            "truncation": {"rope_parameters": TRUNCATED | {"truncate": False}},
        },
    ),
    "llama-yarn_untruncated": Case(
        _llama(rope_parameters=UNTRUNCATED, head_dim=12),
        features={
            "attention factor": {"rope_parameters": UNTRUNCATED | {"attention_factor": 1.0}},
            "truncation": {"rope_parameters": UNTRUNCATED | {"truncate": True}},
        },
    ),
    "mistral-plain": Case(MistralConfig(**SIZES | {"sliding_window": None})),
    "mistral-window": Case(MistralConfig(**SIZES | {"sliding_window": 8}), features=NO_WINDOW),
    "qwen2-tied": Case(Qwen2Config(**SIZES | {"tie_word_embeddings": True}), loud=("proj",)),
    "qwen2-window": Case(
        Qwen2Config(
            **SIZES
            | {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        ),
        features={
            "window": {"layer_types": ["full_attention"] * 3},
            "first layer without": {"layer_types": ["sliding_attention"] * 3},
        },
    ),
    "qwen3": Case(Qwen3Config(**SIZES | {"head_dim": 16})),
    "gemma": Case(GemmaConfig(**SIZES | {"head_dim": 12, "num_key_value_heads": 1}), loud=("proj",), slight=GELU),
    "gemma2": Case(
        Gemma2Config(
            **SIZES
            | {
                "num_hidden_layers": 3, "head_dim": 12, "sliding_window": 8, "query_pre_attn_scalar": 20,
                "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0,
            },
        ),
        features={
            "attention cap": {"attn_logit_softcapping": None},
            "logit cap": {"final_logit_softcapping": None},
            "window": {"layer_types": ["full_attention"] * 3},
            "alternation": {"layer_types": ["sliding_attention"] * 3},
            "scale": {"query_pre_attn_scalar": 12},
        },
        slight=EXACT,
        loud=("proj",),
    ),
    "gemma3": Case(
        Gemma3TextConfig(
            **SIZES
            | {
                "num_hidden_layers": 8, "head_dim": 8, "num_key_value_heads": 1, "intermediate_size": 24,
                "sliding_window": 8, "query_pre_attn_scalar": 20, "rope_parameters": GEMMA3_ROPE,
            },
        ),
        features={
            "window": {"sliding_window": 64},
            "global layer": {"layer_types": ["sliding_attention"] * 8},
            "global factor": {"rope_parameters": GEMMA3_PLAIN},
            "local base": {"rope_parameters": GEMMA3_ONE},
            "scale": {"query_pre_attn_scalar": 8},
        },
        slight=EXACT,
    ),
    "gpt2": Case(
        GPT2Config(
            vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=40, initializer_range=0.15,
            layer_norm_epsilon=0.03,
            bos_token_id=1, eos_token_id=2,
        ),
        dtype=torch.float32,
        features={"norm's epsilon": {"layer_norm_epsilon": 1e-5}},
        slight={"activation": {"activation_function": "gelu"}},
        loud=("attn", "mlp", "wpe"),
    ),
    "phi3": Case(Phi3Config(**SIZES)),
    "phi3-longrope": Case(
        Phi3Config(**SIZES | {"original_max_position_embeddings": 22, "rope_parameters": LONG}),
        features={
            "long factors": {"rope_parameters": LONG | {"long_factor": [1.0, 1.1, 1.3]}},
            "attention factor": {"rope_parameters": LONG | {"attention_factor": 1.0}},
        },
        by_length=True,
    ),
    "mixtral": Case(
        MixtralConfig(**SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16}),
        active=2,
        loud=("gate.weight",),
    ),
    "qwen3_moe-normed": Case(
        Qwen3MoeConfig(**SIZES | MOE | {"norm_topk_prob": True}),
        active=2,
        loud=("gate.weight",),
        features={"normed": {"norm_topk_prob": False}},
    ),
    "qwen3_moe-sparse": Case(
        Qwen3MoeConfig(
            **SIZES
            | MOE
            | {"norm_topk_prob": False, "num_hidden_layers": 4, "mlp_only_layers": [1], "decoder_sparse_step": 2},
        ),
        active=2,
        loud=("gate.weight",),
        features={"normed": {"norm_topk_prob": True}},
    ),
}  # fmt: skip
