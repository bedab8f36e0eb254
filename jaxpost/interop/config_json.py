# SPDX-License-Identifier: Apache-2.0
"""A decoder's sizes as the config.json of a Hugging Face model, in the spellings of transformers 4 and 5."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpost.faults import Fault
from jaxpost.interop.names import BIASES
from jaxpost.models.decoder import Decoder
from jaxpost.models.rope import Rope

CONFIG = "config.json"
DTYPES = ("float32", "bfloat16", "float16")

# What transformers takes where the file is silent. Sizes without which a model makes no sense have no default here.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8, "sliding_window": 4096},
}

# Fields that the decoder can serve with one value only. Any other would be another function.
_FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "sliding_window": None,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}


@dataclass(frozen=True)
class _Fields:
    """The fields of one file, each checked as it is read."""

    file: Path
    values: Mapping[str, Any]

    def fault(self, name: str, needed: str) -> Fault:
        return Fault(f"{self.file}: {name} is {json.dumps(self.values.get(name))}; {needed}")

    def size(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or value < 1:
            raise self.fault(name, "it must be a positive whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.fault(name, "it must be a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if value is not None and type(value) is not bool:
            raise self.fault(name, "it must be true or false")
        return bool(value)

    def only(self, name: str, value: Any) -> None:
        if self.values.get(name) not in (None, value):
            raise self.fault(name, f"the decoder can only serve {json.dumps(value)}")


def read(directory: Path) -> Decoder:
    """The decoder of a Llama directory, or of a Mistral one without a sliding window, which is the same function."""
    fields = _open(directory)
    for name, value in _FIXED.items():
        fields.only(name, value)
    heads, d = fields.size("num_attention_heads"), fields.size("hidden_size")
    kv_heads = fields.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.fault("num_key_value_heads", f"it must divide num_attention_heads {heads}")
    if fields.values.get("head_dim") is None and d % heads:
        raise fields.fault("hidden_size", f"without head_dim, num_attention_heads {heads} must divide it")
    head_size = fields.size("head_dim", d // heads)
    if head_size % 2:
        raise fields.fault("head_dim", f"rotary embeddings need an even head size, not {head_size}")
    max_length = fields.size("max_position_embeddings")
    return Decoder(
        vocab=fields.size("vocab_size"),
        d=d,
        layers=fields.size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        ffn=fields.size("intermediate_size"),
        rope=_rope(fields, max_length),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied=fields.flag("tie_word_embeddings"),
        biases=tuple(name for flag, names in BIASES.items() if fields.flag(flag) for name in names),
        max_length=max_length,
        dtype=_dtype(fields),
    )


def _open(directory: Path) -> _Fields:
    file = directory / CONFIG
    if not directory.is_dir():
        raise Fault(f"{directory}: no such directory; a model is a directory with {CONFIG} and model.safetensors")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Fault(f"{directory}: no {CONFIG} there; a model is a directory with one and model.safetensors") from None
    except (ValueError, OSError) as error:
        raise Fault(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise Fault(f"{file}: must be a JSON object")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise _Fields(file, values).fault("model_type", f"known: {', '.join(_DEFAULTS)}")
    return _Fields(file, {**_DEFAULTS[kind], **values})


def _dtype(fields: _Fields) -> str:
    """Version 5 says dtype, version 4 torch_dtype; nothing means float32, as there."""
    name = "dtype" if fields.values.get("dtype") is not None else "torch_dtype"
    value = fields.values.get(name)
    if value is None:
        return "float32"
    if value not in DTYPES:
        raise fields.fault(name, f"known: {', '.join(DTYPES)}")
    return value


def _rope(fields: _Fields, max_length: int) -> Rope:
    """Version 5 puts all of it into rope_parameters, version 4 the base beside the rest, in rope_scaling."""
    where = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
    values = fields.values.get(where) or {}
    if not isinstance(values, dict):
        raise fields.fault(where, "it must be an object")
    scaling = _Fields(fields.file, {f"{where}.{name}": value for name, value in values.items()})
    theta = scaling.number(f"{where}.rope_theta", fields.number("rope_theta", 10000.0))
    scaling.only(f"{where}.partial_rotary_factor", 1.0)
    kind = "rope_type" if "rope_type" in values else "type"
    if values.get(kind, "default") == "default":
        return Rope(theta)
    if values[kind] != "llama3":
        raise scaling.fault(f"{where}.{kind}", "known: default, llama3")
    rope = Rope(
        theta,
        factor=scaling.number(f"{where}.factor"),
        low=scaling.number(f"{where}.low_freq_factor"),
        high=scaling.number(f"{where}.high_freq_factor"),
        original=scaling.size(f"{where}.original_max_position_embeddings", max_length),
    )
    if rope.high <= rope.low:
        raise scaling.fault(f"{where}.high_freq_factor", f"it must be above low_freq_factor {rope.low}")
    return rope


def write(directory: Path, config: Decoder, extra: Mapping[str, Any]) -> None:
    """A config.json that both versions read alike. Values that only training there would use are their defaults."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope.factor != 1.0:
        rope = {
            "rope_type": "llama3",
            "factor": config.rope.factor,
            "low_freq_factor": config.rope.low,
            "high_freq_factor": config.rope.high,
            "original_max_position_embeddings": config.rope.original,
        }
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.d,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        **{flag: any(name in config.biases for name in names) for flag, names in BIASES.items()},
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": None if config.rope.factor == 1.0 else rope,
        "rope_parameters": {"rope_theta": config.rope.theta, **rope},
        "tie_word_embeddings": config.tied,
        "dtype": config.dtype,
        "torch_dtype": config.dtype,
        **extra,
    }
    (directory / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
