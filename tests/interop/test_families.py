# SPDX-License-Identifier: Apache-2.0
"""Every family: published configs in both spellings, decoders that go round, and tables of names without gaps."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost import params as parameters
from jaxpost import trees
from jaxpost.faults import Fault
from jaxpost.interop import families, names, read_config
from jaxpost.interop.families.family import shortest
from jaxpost.models.architecture import Decoder, Experts, Layer, specs
from jaxpost.models.presets import PRESETS
from jaxpost.models.rope import Long, Rope

# Published totals: models' cards and papers, and the files' own counts (for Gemma 3 4B without its vision part).
PUBLISHED = {
    "llama-2-7b": 6.738e9,
    "llama-1b": 1.236e9,
    "llama-8b": 8.030e9,
    "mistral-7b": 7.242e9,
    "qwen2.5-0.5b": 0.494e9,
    "qwen2.5-7b": 7.616e9,
    "qwen3-0.6b": 0.596e9,
    "qwen3-8b": 8.191e9,
    "qwen3-30b-a3b": 30.53e9,
    "gemma-2b": 2.506e9,
    "gemma-2-2b": 2.614e9,
    "gemma-2-9b": 9.242e9,
    "gemma-3-1b": 1.000e9,
    "gemma-3-4b": 3.884e9,
    "gpt2": 0.1244e9,
    "phi-3-mini": 3.821e9,
    "mixtral-8x7b": 46.70e9,
    "nano": 3.722e6,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_go_round_and_have_the_published_size(tmp_path, name):
    config = PRESETS[name]
    families.write(tmp_path, config, {})
    assert read_config(tmp_path) == config
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == (config.family or "llama")
    assert abs(parameters.count(specs(config)) / PUBLISHED[name] - 1) < 0.01


SMALL = Decoder(vocab=32, d=16, layers=5, heads=4, kv_heads=2, head_size=4, ffn=24, max_length=64)
GEMMA = dataclasses.replace(SMALL, norm="offset", embed_scale=4.0, activation="gelu_tanh", tied=True)
NEAR = Layer(8, Rope(100.0))
GEMMA2 = dataclasses.replace(GEMMA, post_norms=True, attn_cap=50.0, logit_cap=30.0, pattern=(Layer(8), Layer()))
HELD = {
    "llama": dataclasses.replace(SMALL, biases=("q", "k", "v", "o")),
    "mistral": dataclasses.replace(SMALL, pattern=(Layer(8),)),
    "qwen2": dataclasses.replace(SMALL, biases=("q", "k", "v"), pattern=(*(Layer(),) * 2, *(Layer(8),) * 3)),
    "qwen3": dataclasses.replace(SMALL, qk_norm=True, biases=("q", "k", "v", "o"), pattern=(Layer(), Layer(8))),
    "gemma": GEMMA,
    "gemma2": dataclasses.replace(GEMMA2, attn_scale=144**-0.5),
    "gemma3_text": dataclasses.replace(GEMMA, post_norms=True, qk_norm=True, pattern=(NEAR, NEAR, Layer())),
    "gpt2": dataclasses.replace(
        SMALL, kv_heads=4, rope=None, norm="layer", biases=("q", "k", "v", "o", "up", "down"), gated=False, ffn=64,
        activation="gelu_tanh",
    ),
    "phi3": dataclasses.replace(SMALL, rope=Rope(1e4, Long((1.0,), (3.0,), 16, attention=1.25), fraction=0.5)),
    "mixtral": dataclasses.replace(SMALL, experts=Experts(3, 2, 24)),
    "qwen3_moe": dataclasses.replace(
        SMALL, qk_norm=True, experts=Experts(3, 2, 8, renormalised=False), pattern=(Layer(dense=True), Layer())
    ),
}  # fmt: skip
"""One decoder that the family can hold and no family before it."""


def test_every_family_is_tested():
    assert list(HELD) == [family.kind for family in families.WRITTEN]


@pytest.mark.parametrize("kind", HELD)
def test_a_decoder_finds_the_family_that_can_hold_it(tmp_path, kind):
    config = HELD[kind]
    assert families.of(config)[0].kind == kind
    families.write(tmp_path, config, {})
    assert read_config(tmp_path) == config
    assert read_config(tmp_path).family == kind


@pytest.mark.parametrize("kind", HELD)
def test_every_parameter_has_its_place_in_tensors_and_they_are_full(kind):
    family, config = families.of(HELD[kind])
    wanted = {path: spec for path, spec in trees.flatten(specs(config)).items() if not spec.optional}
    parts = names.parts(family, config)
    assert {part.path for part in parts} == wanted.keys()
    assert len({(part.path, part.index) for part in parts}) == len(parts)
    for path, spec in wanted.items():
        of = [part for part in parts if part.path == path]
        assert sorted(part.index for part in of) == sorted(np.ndindex(spec.sizes(0)))
    shapes = names.shapes(parts)
    assert sum(map(np.prod, shapes.values())) == parameters.count(specs(config))
    for name, group in names.grouped(parts).items():
        assert family.canonical(name) == name
        ends = sorted((part.start, part.start + part.outer) for part in group)
        assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])], name


def test_where_a_model_is_from_decides_between_families_that_can_hold_it():
    assert families.of(SMALL)[0].kind == "llama"
    assert families.of(dataclasses.replace(SMALL, family="phi3"))[0].kind == "phi3"
    # ... as long as it still can.
    assert families.of(dataclasses.replace(SMALL, family="gemma"))[0].kind == "llama"
    assert families.of(dataclasses.replace(SMALL, family="llama", biases=("q", "k", "v")))[0].kind == "llama"
    assert families.of(dataclasses.replace(SMALL, biases=("q", "k", "v")))[0].kind == "qwen2"


def test_the_family_is_no_part_of_what_makes_configs_equal():
    other = dataclasses.replace(SMALL, family="phi3")
    assert other == SMALL and hash(other) == hash(SMALL)


# Published files, shortened to what matters

LLAMA = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "head_dim": 64}
LLAMA |= {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu"}
LLAMA3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
GEMMA3_SIZES = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
LINEAR8 = {"factor": 8.0, "rope_type": "linear"}
GEMMA3_1B = {"model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912}
GEMMA3_1B |= {"num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
GEMMA3_1B |= {"sliding_window": 512, "max_position_embeddings": 32768, "query_pre_attn_scalar": 256}
GEMMA2 = {"model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216}
GEMMA2 |= {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
QWEN2 = {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864}
QWEN2 |= {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
MOE = {"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128}
MOE |= {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 40960}
MOE |= {"moe_intermediate_size": 768, "num_experts_per_tok": 8, "norm_topk_prob": True}
MIXTRAL = {"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336}
MIXTRAL |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}
PHI3 = {"model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192}
PHI3 |= {"num_hidden_layers": 32, "num_attention_heads": 32, "sliding_window": 2047, "rms_norm_eps": 1e-5}
OLD, NEW = {"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    "said, name",
    [
        (LLAMA | OLD | {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": "llama3"}}, "llama-1b"),
        (LLAMA | NEW | {"rope_parameters": {**LLAMA3, "rope_type": "llama3", "rope_theta": 5e5}}, "llama-1b"),
        (QWEN2 | OLD | {"max_window_layers": 24, "rope_theta": 1e6, "use_sliding_window": False}, "qwen2.5-0.5b"),
        (QWEN2 | NEW | {"rope_parameters": {"rope_theta": 1e6}, "sliding_window": None}, "qwen2.5-0.5b"),
        (GEMMA2 | OLD | {"hidden_act": "gelu_pytorch_tanh", "rope_theta": 10000.0}, "gemma-2-2b"),
        (GEMMA2 | NEW | {"layer_types": ["sliding_attention", "full_attention"] * 13}, "gemma-2-2b"),
        (GEMMA3_1B | OLD | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}, "gemma-3-1b"),
        (
            GEMMA3_1B | NEW | {"_sliding_window_pattern": 6}
            | {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            "gemma-3-1b",
        ),
        ({"model_type": "gemma3", "text_config": {**GEMMA3_SIZES, "rope_scaling": LINEAR8}} | OLD, "gemma-3-4b"),
        ({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}, "gpt2"),
        (MOE | OLD | {"rope_theta": 1e6, "num_experts": 128, "decoder_sparse_step": 1, "mlp_only_layers": []},
         "qwen3-30b-a3b"),
        (MOE | NEW | {"rope_parameters": {"rope_theta": 1e6}, "num_local_experts": 128}, "qwen3-30b-a3b"),
        (MIXTRAL | OLD | {"rope_theta": 1e6, "num_local_experts": 8, "max_position_embeddings": 32768}, "mixtral-8x7b"),
        (PHI3 | NEW | {"original_max_position_embeddings": 4096}, "phi-3-mini"),
    ],
)  # fmt: skip
def test_published_files_in_both_spellings(tmp_path, said, name):
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert read_config(tmp_path) == PRESETS[name]


def test_gemma_1_says_gelu_and_means_its_tanh_form(tmp_path):
    sizes = {"vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma", "hidden_act": "gelu", **sizes, **OLD}))
    assert read_config(tmp_path) == PRESETS["gemma-2b"]


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=12))
def test_the_shortest_pattern_explains_the_layers_and_no_shorter_one_does(kinds):
    layers = [Layer(window=1 if kind == "a" else None) for kind in kinds]
    explains = [p for p in range(1, len(layers) + 1) if (layers[:p] * len(layers))[: len(layers)] == layers]
    assert shortest(layers) == tuple(layers[: explains[0]])


def test_transformers_would_refuse_some_widths_so_another_family_takes_them():
    odd = dataclasses.replace(SMALL, d=18)
    assert families.of(odd)[0].kind == "mistral"
    with pytest.raises(Fault, match="gemma3_text, the nearest, has no place for d=18, heads=4$"):
        families.of(dataclasses.replace(HELD["gemma3_text"], d=18, embed_scale=18**0.5))
