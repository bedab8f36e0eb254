# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings as config.json says them. Version 5 of transformers puts all of it into `rope_parameters`; version
4 the base (`rope_theta`) beside the rest, in `rope_scaling`. Defaults and formulas are those of its
modeling_rope_utils.py.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxpost.interop.config_json import ConfigFields
from jaxpost.models.architecture import Decoder
from jaxpost.models.rope import Dynamic, Linear, Llama3, Long, Rope, Yarn

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read(fields: ConfigFields, head_size: int, theta: float = 10000.0, partial: bool = False) -> Rope:
    """The rope of a model whose layers share one. `partial` models may turn a part of each head only."""
    said = _or_none(fields, "rope_scaling") or _or_none(fields, "rope_parameters") or ConfigFields(fields.file, {})
    return of(said, fields, head_size, fields.number("rope_theta", theta), partial)


def of(said: ConfigFields, fields: ConfigFields, head_size: int, theta: float, partial: bool = False) -> Rope:
    """What one object says; `fields` are those of the whole file."""
    theta = said.number("rope_theta", theta)
    fraction = 1.0
    if partial:
        fraction = said.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
        if fraction > 1:
            raise said.fault("partial_rotary_factor", "it must be at most 1")
    else:
        said.require("partial_rotary_factor", 1.0)
        fields.require("partial_rotary_factor", 1.0)
    if (size := Rope(fraction=fraction).size(head_size)) % 2:
        raise fields.fault("head_dim", f"rotary embeddings turn pairs, and {size} of {head_size} is odd")
    return Rope(theta, _scaling(said, fields, size), fraction)


def _or_none(fields: ConfigFields, name: str) -> ConfigFields | None:
    """The object of that name, if there is something in it."""
    found = fields.inside(name) if fields.values.get(name) else None
    return found if found is None or found.values else None


def _scaling(said: ConfigFields, fields: ConfigFields, size: int) -> Linear | Dynamic | Llama3 | Yarn | Long | None:
    name = "rope_type" if "rope_type" in said.values else "type"
    kind = said.values.get(name) or "default"
    if kind == "su" or (kind == "yarn" and "short_factor" in said.values):
        kind = "longrope"  # its names in Phi-3's first files
    longest = fields.size("max_position_embeddings")
    # Where it stands beside the object it comes first there, as in Phi-3's files.
    original = fields.size("original_max_position_embeddings", said.size("original_max_position_embeddings", longest))
    if kind in ("yarn", "longrope") and not any(
        f.values.get("original_max_position_embeddings") for f in (said, fields)
    ):
        said.number("factor")  # it follows from two lengths, or must be said
    match kind:
        case "default":
            return None
        case "linear":
            return Linear(said.number("factor"))
        case "dynamic":
            return Dynamic(said.number("factor"), longest)
        case "llama3":
            factor = said.number("factor")
            low, high = said.number("low_freq_factor"), said.number("high_freq_factor")
            if high <= low:
                raise said.fault("high_freq_factor", f"it must be above low_freq_factor {low}")
            return Llama3(factor, low, high, original)
        case "yarn":
            return _yarn(said, original, longest)
        case "longrope":
            short, long = said.numbers("short_factor", size // 2), said.numbers("long_factor", size // 2)
            factor = said.number("factor", longest / original)
            return Long(short, long, original, said.number("attention_factor", _long_attention(factor, original)))
    raise said.fault(name, f"known: {', '.join(KINDS)}")


def _yarn(said: ConfigFields, original: int, longest: int) -> Yarn:
    factor = said.number("factor", longest / original)
    scale, scale_all = said.values.get("mscale"), said.values.get("mscale_all_dim")
    attention = _yarn_attention(factor)
    if scale and scale_all:
        attention = _yarn_attention(factor, float(scale)) / _yarn_attention(factor, float(scale_all))
    return Yarn(
        factor,
        original,
        attention=said.number("attention_factor", attention),
        fast=float(said.values.get("beta_fast") or 32),
        slow=float(said.values.get("beta_slow") or 1),
        truncate=said.flag("truncate", True),
    )


def _yarn_attention(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _long_attention(factor: float, original: int) -> float:
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def written(rope: Rope | None, config: Decoder) -> dict[str, Any]:
    """The fields of a model whose layers share one rope, in both spellings."""
    if rope is None:
        return {}
    scaling = parameters(rope, config)
    both: dict[str, Any] = {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.scaling is None else dict(scaling),
        "rope_parameters": {"rope_theta": rope.theta, **scaling},
    }
    if isinstance(rope.scaling, Long):
        # Version 4's Phi-3 takes exactly three fields, and the original length beside them.
        both["rope_scaling"]["type"] = both["rope_scaling"].pop("rope_type")
        both["original_max_position_embeddings"] = both["rope_scaling"].pop("original_max_position_embeddings")
    if rope.fraction != 1:
        both["partial_rotary_factor"] = rope.fraction
        both["rope_parameters"]["partial_rotary_factor"] = rope.fraction
    return both


def parameters(rope: Rope, config: Decoder) -> Mapping[str, Any]:
    """How the frequencies are stretched. Factors that follow from the others are left to the reader."""
    match rope.scaling:
        case None:
            return {"rope_type": "default"}
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Dynamic(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3(factor, low, high, original):
            said = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", **said, "original_max_position_embeddings": original}
        case Yarn(factor, original, attention, fast, slow, truncate):
            said = {"factor": factor, "original_max_position_embeddings": original}
            odd = {"attention_factor": attention} if attention != _yarn_attention(factor) else {}
            odd |= {} if truncate else {"truncate": False}
            return {"rope_type": "yarn", **said, "beta_fast": fast, "beta_slow": slow, **odd}
        case Long(short, long, original, attention):
            said = {"short_factor": list(short), "long_factor": list(long)}
            usual = _long_attention(config.max_length / original, original)
            odd = {"attention_factor": attention} if attention != usual else {}
            return {"rope_type": "longrope", **said, "original_max_position_embeddings": original, **odd}
