# SPDX-License-Identifier: Apache-2.0
"""What a config.json may say: the spellings of transformers 4 and 5, and what the decoder cannot serve."""

import dataclasses
import json
import math

import pytest

from jaxpost.faults import Fault
from jaxpost.interop import families, read_config
from jaxpost.models.architecture import Decoder, Layer
from jaxpost.models.rope import Dynamic, Linear, Llama3, Long, Rope, Yarn

SMALL = Decoder(vocab=48, d=16, layers=3, heads=4, kv_heads=2, head_size=6, ffn=24, max_length=64)


def replaced(config=SMALL, **fields):
    return dataclasses.replace(config, **fields)


@pytest.fixture
def model(tmp_path):
    families.write(tmp_path, SMALL, extra={})
    return tmp_path


def edit(directory, **fields):
    """Sets fields; three dots take one away."""
    file = directory / "config.json"
    values = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


@pytest.mark.parametrize("config", [SMALL, replaced(tied=True, dtype="bfloat16", norm_eps=3e-6, activation="gelu")])
@pytest.mark.parametrize("biases", [(), ("q", "k", "v", "o"), ("gate", "up", "down")])
def test_what_is_written_is_read(tmp_path, config, biases):
    config = dataclasses.replace(config, biases=biases)
    families.write(tmp_path, config, {"eos_token_id": 2})
    assert read_config(tmp_path) == config


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": ..., "rope_theta": 7e4, "rope_scaling": {"rope_type": "llama3", **LLAMA3}, "dtype": ...},
        {"rope_parameters": ..., "rope_theta": 7e4, "rope_scaling": {"type": "llama3", **LLAMA3}, "dtype": ...},
        {"rope_theta": ..., "rope_scaling": ..., "torch_dtype": ...}
        | {"rope_parameters": {"rope_theta": 7e4, "rope_type": "llama3", **LLAMA3}},
    ],
    ids=["version 4", "early version 4", "version 5"],
)
def test_spellings_of_both_versions(model, fields):
    edit(model, **fields)
    assert read_config(model) == replaced(rope=Rope(7e4, Llama3(8.0, 1.0, 4.0, 32)))


def test_silent_fields_mean_what_they_mean_in_transformers(model):
    absent = ("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "dtype", "torch_dtype", "rope_theta")
    edit(model, rope_parameters=..., attention_bias=..., mlp_bias=..., **dict.fromkeys(absent, ...))
    assert read_config(model) == replaced(norm_eps=1e-6, max_length=2048)


def test_mistral_without_a_window_is_a_llama(model):
    edit(model, model_type="mistral", sliding_window=None)
    assert read_config(model) == SMALL
    edit(model, sliding_window=...)  # where the file is silent
    assert read_config(model) == replaced(pattern=(Layer(4096),))


# Stretched ropes


@pytest.mark.parametrize(
    "said, scaling",
    [
        ({"type": "linear", "factor": 2}, Linear(2.0)),
        ({"type": "dynamic", "factor": 2.0}, Dynamic(2.0, 64)),  # the config's own length is what it counts from
        ({"rope_type": "yarn", "factor": 4.0}, Yarn(4.0, 64, 0.1 * math.log(4) + 1)),
        (
            {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16, "truncate": False},
            Yarn(4.0, 16, 0.1 * math.log(4) + 1, truncate=False),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0.5, "beta_fast": 16, "beta_slow": 2},
            Yarn(4.0, 64, (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1), 16.0, 2.0),
        ),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}, Yarn(4.0, 64, 1.5)),
        (
            {"rope_type": "longrope", "short_factor": [1, 2, 3], "long_factor": [4, 5, 6]}
            | {"original_max_position_embeddings": 16},
            Long((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 16, math.sqrt(1 + math.log(4) / math.log(16))),
        ),
    ],
)
def test_scalings_are_read_and_go_round(model, tmp_path, said, scaling):
    edit(model, rope_parameters=None, rope_scaling=said, rope_theta=500.0)
    config = read_config(model)
    assert config == replaced(rope=Rope(500.0, scaling))
    families.write(tmp_path, config, {})
    assert read_config(tmp_path) == config


def test_the_original_length_beside_the_object_comes_first(model):
    long = {"short_factor": [1, 1, 1], "long_factor": [2, 2, 2], "original_max_position_embeddings": 16}
    edit(model, rope_scaling={"type": "su", **long}, original_max_position_embeddings=32)
    rope = read_config(model).rope
    assert rope is not None and rope.scaling == Long(
        (1.0,) * 3, (2.0,) * 3, 32, math.sqrt(1 + math.log(2) / math.log(32))
    )


# What cannot be served


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"model_type": "gpt_neox"}, 'model_type is "gpt_neox"; supported architectures: llama, mistral, qwen2, '),
        ({"model_type": "gpt_neox"}, "; the nearest to it: gpt2"),
        ({"model_type": "qwen3_next"}, "; the nearest to it: qwen3"),
        ({"model_type": ...}, "model_type is null; supported architectures: llama"),
        ({"hidden_act": "tanh"}, 'hidden_act is "tanh"; known: silu'),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the weights are quantised (gptq); take the"),
        ({"vocab_size": ...}, "vocab_size is null; it must be a positive whole number"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"hidden_size": True}, "hidden_size is true"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide num_attention_heads 4"),
        ({"head_dim": None, "hidden_size": 18}, "hidden_size is 18; without head_dim"),
        ({"head_dim": 5}, "head_dim is 5; rotary embeddings turn pairs"),
        ({"rms_norm_eps": "small"}, 'rms_norm_eps is "small"'),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no"; it must be true or false'),
        ({"dtype": "int8"}, 'dtype is "int8"; known: float32'),
        ({"rope_parameters": {"rope_type": "mrope"}}, 'rope_parameters.rope_type is "mrope"; known: default, linear'),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.factor is null; it must be a positive number"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.factor is null; it must be a positive number"),
        (
            {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1}},
            "rope_parameters.high_freq_factor is 1; it must be above",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "factor": 2, "short_factor": [1], "long_factor": [1]}},
            "rope_parameters.short_factor is [1]; it must be a list of 3 numbers",
        ),
        ({"rope_parameters": [1]}, "rope_parameters is [1]; it must be an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor is 0.5"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types is"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 3}, "full_attention or sliding_attention for 3"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ({"model_type": "mixtral", "num_local_experts": 1}, "num_experts_per_tok is null; there are 1 experts"),
        ({"model_type": "gemma3"}, "text_config is null"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 0}}, "text_config.hidden_size is 0"),
    ],
)
def test_fields_that_cannot_be_served_are_named_with_their_value(model, fields, said):
    edit(model, **fields)
    with pytest.raises(Fault) as fault:
        read_config(model)
    assert said in str(fault.value) and str(model / "config.json") in str(fault.value)


def test_a_decoder_that_no_family_can_hold_is_refused_with_what_stands_in_the_way(tmp_path):
    with pytest.raises(Fault, match="can hold this decoder: llama, the nearest, has no place for logit_cap=3.0$"):
        families.write(tmp_path, replaced(logit_cap=3.0), {})
    assert list(tmp_path.iterdir()) == []
