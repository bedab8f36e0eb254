# SPDX-License-Identifier: Apache-2.0
"""What a config.json may say: the spellings of transformers 4 and 5, and what the decoder cannot serve."""

import dataclasses
import json

import pytest

from jaxpost.faults import Fault
from jaxpost.interop import config_json, read_config
from jaxpost.models.decoder import Decoder

SMALL = Decoder(vocab=48, d=16, layers=3, heads=4, kv_heads=2, head_size=6, ffn=24, max_length=64)


@pytest.fixture
def model(tmp_path):
    config_json.write(tmp_path, SMALL, extra={})
    return tmp_path


def edit(directory, **fields):
    """Sets fields; three dots take one away."""
    file = directory / "config.json"
    values = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, tied=True, dtype="bfloat16", norm_eps=3e-6)])
@pytest.mark.parametrize("biases", [(), ("q", "k", "v", "o"), ("gate", "up", "down")])
def test_what_is_written_is_read(tmp_path, config, biases):
    config = dataclasses.replace(config, biases=biases)
    config_json.write(tmp_path, config, {"eos_token_id": 2})
    assert config_json.read(tmp_path) == config


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
    rope = dataclasses.replace(SMALL.rope, theta=7e4, factor=8.0, low=1.0, high=4.0, original=32)
    assert read_config(model) == dataclasses.replace(SMALL, rope=rope)


def test_silent_fields_mean_what_they_mean_in_transformers(model):
    absent = ("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "dtype", "torch_dtype", "rope_theta")
    edit(model, rope_parameters=..., attention_bias=..., mlp_bias=..., **dict.fromkeys(absent, ...))
    assert read_config(model) == dataclasses.replace(SMALL, norm_eps=1e-6, max_length=2048)


def test_mistral_without_a_window_is_a_llama(model):
    edit(model, model_type="mistral", sliding_window=None)
    assert read_config(model) == SMALL


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"model_type": "gpt_neox"}, 'model_type is "gpt_neox"; known: llama, mistral'),
        ({"model_type": ...}, "model_type is null; known: llama"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window is 4096"),
        ({"model_type": "mistral"}, "sliding_window is 4096"),  # transformers' value where the file is silent
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"; the decoder can only serve "silu"'),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"vocab_size": ...}, "vocab_size is null; it must be a positive whole number"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"hidden_size": True}, "hidden_size is true"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide num_attention_heads 4"),
        ({"head_dim": None, "hidden_size": 18}, "hidden_size is 18; without head_dim"),
        ({"head_dim": 5}, "head_dim is 5; rotary"),
        ({"rms_norm_eps": "small"}, 'rms_norm_eps is "small"'),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no"; it must be true or false'),
        ({"dtype": "int8"}, 'dtype is "int8"; known: float32'),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'rope_parameters.rope_type is "yarn"; known: default, llama3'),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
            'rope_scaling.type is "linear"; known: default, llama3',
        ),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.factor is null; it must be a positive number"),
        (
            {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1}},
            "rope_parameters.high_freq_factor is 1; it must be above",
        ),
        ({"rope_parameters": [1]}, "rope_parameters is [1]; it must be an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor is 0.5"),
    ],
)
def test_fields_that_cannot_be_served_are_named_with_their_value(model, fields, said):
    edit(model, **fields)
    with pytest.raises(Fault) as fault:
        read_config(model)
    assert said in str(fault.value) and str(model / "config.json") in str(fault.value)
