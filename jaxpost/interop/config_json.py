# SPDX-License-Identifier: Apache-2.0
"""config.json: its fields, each checked as it is read, and the few that all families of models spell alike."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpost.faults import Fault
from jaxpost.models.architecture import Activation, Decoder

CONFIG = "config.json"
DTYPES = ("float32", "bfloat16", "float16")
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class ConfigFields:
    """The fields of one object in one file. `within` is what its names are prefixed with in what is said of them."""

    file: Path
    values: Mapping[str, Any]
    within: str = ""

    def fault(self, name: str, needed: str) -> Fault:
        return Fault(f"{self.file}: {self.within}{name} is {json.dumps(self.values.get(name))}; {needed}")

    def with_defaults(self, defaults: Mapping[str, Any]) -> "ConfigFields":
        """The same with what is meant where the file says nothing."""
        return ConfigFields(self.file, {**defaults, **self.values}, self.within)

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

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) != count or not all(type(x) in (int, float) for x in value):
            raise self.fault(name, f"it must be a list of {count} numbers")
        return tuple(map(float, value))

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is not None and type(value) is not bool:
            raise self.fault(name, "it must be true or false")
        return default if value is None else value

    def inside(self, name: str) -> "ConfigFields | None":
        """The object of that name, if there is one."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fault(name, "it must be an object")
        return ConfigFields(self.file, value, f"{self.within}{name}.")

    def require(self, name: str, value: Any) -> None:
        if self.values.get(name) not in (None, value):
            raise self.fault(name, f"the decoder can only serve {json.dumps(value)}")

    def activation(self, name: str) -> Activation:
        value = self.values.get(name)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.fault(name, f"known: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]


def opened(directory: Path) -> ConfigFields:
    """A directory's config.json; what cannot be one, or is of a quantised checkpoint, is a `Fault`."""
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
    quantised = values.get("quantization_config") or values.get("compression_config")
    if quantised and not _in_four_bits(quantised):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise Fault(
            f"{file}: quantization_config says that the weights are quantised ({method or 'how, it does not say'}); "
            "take the model that it was made from, and quantise that when it is loaded (quant='int8')"
        )
    return ConfigFields(file, values)


def _in_four_bits(said: Any) -> bool:
    """Whether the weights are stored as bitsandbytes does it with four bits, which is read as it is."""
    four = isinstance(said, dict) and (said.get("load_in_4bit") or said.get("_load_in_4bit"))
    return bool(four) and said.get("quant_method", "bitsandbytes") == "bitsandbytes"


def sizes(fields: ConfigFields) -> dict[str, Any]:
    """The fields of `Decoder` that nearly all families spell alike."""
    heads, d = fields.size("num_attention_heads"), fields.size("hidden_size")
    kv_heads = fields.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.fault("num_key_value_heads", f"it must divide num_attention_heads {heads}")
    if fields.values.get("head_dim") is None and d % heads:
        raise fields.fault("hidden_size", f"without head_dim, num_attention_heads {heads} must divide it")
    return {
        "vocab": fields.size("vocab_size"),
        "d": d,
        "layers": fields.size("num_hidden_layers"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": fields.size("head_dim", d // heads),
        "ffn": fields.size("intermediate_size"),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "max_length": fields.size("max_position_embeddings"),
        "tied": fields.flag("tie_word_embeddings"),
        "dtype": dtype(fields),
    }


def spelled(config: Decoder) -> dict[str, Any]:
    """The inverse of `sizes`."""
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.d,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }


def activation_name(activation: Activation) -> str:
    return "gelu_pytorch_tanh" if activation == "gelu_tanh" else activation


def dtype(fields: ConfigFields) -> str:
    """Version 5 says dtype, version 4 torch_dtype; nothing means float32, as there."""
    name = "dtype" if fields.values.get("dtype") is not None else "torch_dtype"
    value = fields.values.get(name)
    if value is None:
        return "float32"
    if value not in DTYPES:
        raise fields.fault(name, f"known: {', '.join(DTYPES)}")
    return value


def kinds(fields: ConfigFields, layers: int, windowed: Sequence[bool]) -> list[bool]:
    """Which layers see a window only: as `layer_types` says, or else as given."""
    types = fields.values.get("layer_types")
    if types is None:
        return list(windowed)
    known = {"full_attention": False, "attention": False, "sliding_attention": True}
    if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in map(str, types)):
        raise fields.fault("layer_types", f"it must list full_attention or sliding_attention for {layers} layers")
    return [known[kind] for kind in types]
