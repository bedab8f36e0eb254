# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters of AdapterHub's library, in and out: adapter_config.json and adapter.safetensors (or
pytorch_adapter.bin, as it saves by default). Facts are those of adapters 1.3.

There too an adapter changes what attention or MLP adds to the stream, and is added to it. What it reads is what they
make (`own`: Houlsby's), that with the stream (`sum`: Pfeiffer's, and AdapterPlus), or the stream before it (`stream`:
the parallel ones). None reads the layer's normed input. The families here have no norm behind attention or MLP, so
`original_ln_before` and `original_ln_after` say only where the stream is added.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpost import trees
from jaxpost.delta import Bottleneck, Delta, spread
from jaxpost.delta.adapter import Source
from jaxpost.faults import Fault
from jaxpost.interop import adapter_files, families, saving
from jaxpost.interop.adapter_files import Tensors
from jaxpost.interop.config_json import ConfigFields
from jaxpost.models.architecture import Decoder, blocks, is_stacked, specs

WEIGHTS, PICKLED = "adapter.safetensors", "pytorch_adapter.bin"
NAME = "adapter"
FAMILIES = ("llama", "mistral", "gpt2")
"""The families that the library has too."""

_PLACES = {"attn/adapter": "attention_adapters", "mlp/adapter": "output_adapters"}
_ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu",
    "silu": "silu", "tanh": "tanh",
}  # fmt: skip
_NAMES = {"gelu_tanh": "gelu_new", "silu": "swish"}
VERSION = "adapters.1.3.0"
"""The one whose files are written. Files that name none are older than this name of the library."""
_OLDER = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""What activations were called in those."""
_LEARNED = ("learned", "channel")
"""Scalings that are tensors, one number or one a channel. They become part of the way up: the same adapter."""
_NEEDED: Mapping[str, tuple[Any, str]] = {
    "ln_before": (False, "the adapter has a norm of its own"),
    "ln_after": (False, "the adapter has a norm of its own"),
    "use_gating": (False, "the adapter has a gate"),
    "phm_layer": (False, "its matrices are sums of Kronecker products (Compacter)"),
    "inv_adapter": (None, "it holds invertible adapters of the embeddings"),
}
"""What else these fields may say, and what that would mean."""

_PLACED: Mapping[Source, Mapping[str, bool]] = {
    "own": {"original_ln_before": False, "is_parallel": False},
    "sum": {"original_ln_before": True, "is_parallel": False},
    "stream": {"original_ln_before": False, "is_parallel": True},
}
_ADDED = {"original_ln_after": True, "residual_before_ln": True}
"""The stream behind the adapter, and around it only what attention or MLP made."""

_USED = (
    "mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "scaling", "leave_out", "is_parallel",
    "original_ln_before", "original_ln_after", "residual_before_ln",
)  # fmt: skip
_IGNORED = (
    "architecture", "dropout", "stochastic_depth", "init_weights", "init_weights_seed",
    "adapter_residual_before_ln", "inv_adapter_reduction_factor", "cross_adapter", "phm_dim", "factorized_phm_W",
    "shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range", "learn_phm",
    "hypercomplex_nonlinearity", "phm_rank", "phm_bias",
)  # fmt: skip


def load(directory: str | Path, config: Decoder) -> dict[str, Any]:
    """The delta over the model that an adapter directory holds, in float32."""
    directory = Path(directory)
    whole = adapter_files.said(directory)
    said = whole.inside("config")
    if said and "version" not in whole.values and said.values.get("non_linearity") in _OLDER:
        said = replace(said, values={**said.values, "non_linearity": _OLDER[said.values["non_linearity"]]})
    if said is None:
        raise whole.fault("config", "it must be an object: what kind of adapter this is")
    _check(said)
    said = said.with_defaults({**_PLACED["own"], **_ADDED})
    source = _source(said)
    found = adapter_files.tensors(directory, WEIGHTS, PICKLED)
    name = whole.values.get("name", NAME)
    family = families.FAMILIES.get(config.family)
    found.there = {(family and family.canonical(key)) or key: value for key, value in found.there.items()}
    places = [p for p, flag in (("attn/adapter", "mh_adapter"), ("mlp/adapter", "output_adapter")) if said.flag(flag)]
    made = {}
    for block, numbers in blocks(config).items():
        for place in places:
            parts = {n: _read(found, said, _key(config, n, place, name), n, config) for n in _present(said, numbers)}
            if parts:
                made[f"{block}/{place}"] = _stacked(parts, numbers, block, said, config, source)
    found.done()
    return made


def _check(said: ConfigFields) -> None:
    kind = said.values.get("architecture")
    if kind is not None:
        raise said.fault("architecture", "only bottleneck adapters are read")
    adapter_files.warn_of_unknown(said, {*_NEEDED, *_USED, *_IGNORED})
    for name, (value, meaning) in _NEEDED.items():
        if said.values.get(name, value) != value:
            raise said.fault(name, f"{meaning}, and such adapters have no form here")
    if said.values.get("non_linearity") not in _ACTIVATIONS:
        raise said.fault("non_linearity", f"known: {', '.join(_ACTIVATIONS)}")
    scaling = said.values.get("scaling", 1.0)
    if scaling not in _LEARNED and type(scaling) not in (int, float):
        raise said.fault("scaling", f"it must be a number, or {' or '.join(_LEARNED)}")


def _source(said: ConfigFields) -> Source:
    """What the adapters read. The stream must come to be added once: behind them, or around them where they read it
    with what they change."""
    beside, whole, around = said.flag("is_parallel"), said.flag("original_ln_before"), said.values["residual_before_ln"]
    if not beside and type(around) is not bool:
        raise said.fault("residual_before_ln", "it must be true or false; the library fails at others in this family")
    added = said.flag("original_ln_after") + (whole and not around and not beside)
    if added != 1:
        fields = ", ".join(
            f"{name} {json.dumps(said.values[name])}" for name in (*_PLACED["own"], "residual_before_ln")
        )
        raise said.fault("original_ln_after", f"with {fields} the stream is added {added} times, and must be once")
    return "stream" if beside else "sum" if whole else "own"


def _present(said: ConfigFields, numbers: tuple[int, ...]) -> list[int]:
    return [n for n in numbers if n not in (said.values.get("leave_out") or ())]


def _key(config: Decoder, layer: int, place: str, name: str) -> str:
    """What the names of an adapter's tensors begin with."""
    family, _ = families.of(config)
    start = family.tensors["attn_norm"].partition("{layer}.")[0]
    return f"{start}{layer}.{_PLACES[place]}.adapters.{name}."


def _width(said: ConfigFields, layer: int, d: int) -> int:
    factors = said.inside("reduction_factor") if isinstance(said.values.get("reduction_factor"), dict) else None
    if factors is None:
        return max(1, int(d // said.number("reduction_factor")))
    return max(1, int(d // factors.number(str(layer) if str(layer) in factors.values else "default")))


_Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""down `[d, a]`, its bias, up `[a, d]`, its bias."""


def _read(found: Tensors, said: ConfigFields, key: str, layer: int, config: Decoder) -> _Parts:
    d, low = config.d, _width(said, layer, config.d)
    down, down_bias = found.take(f"{key}adapter_down.0.weight", low, d), found.take(f"{key}adapter_down.0.bias", low)
    up, up_bias = found.take(f"{key}adapter_up.weight", d, low).T, found.take(f"{key}adapter_up.bias", d)
    if said.values.get("scaling") in _LEARNED:
        scaling = found.take(f"{key}scaling", d if said.values["scaling"] == "channel" else 1)
        up, up_bias = up * scaling, up_bias * scaling
    return down.T, down_bias, up, up_bias


def _stacked(
    parts: Mapping[int, _Parts],
    numbers: tuple[int, ...],
    block: str,
    said: ConfigFields,
    config: Decoder,
    source: Source,
) -> Bottleneck:
    """Of all layers of a block; narrower ones are filled up with zeros, which pass nothing on."""
    low = max(part[1].shape[0] for part in parts.values())
    shapes = ((config.d, low), (low,), (low, config.d), (config.d,))
    wholes = [np.zeros((len(numbers), *shape), np.float32) for shape in shapes]
    for at, number in enumerate(numbers):
        for whole, part in zip(wholes, parts.get(number, ()), strict=False):
            whole[at][tuple(map(slice, part.shape))] = part
    arrays = [jax.device_put(whole if is_stacked(block) else whole[0]) for whole in wholes]
    activation: Any = _ACTIVATIONS[said.values["non_linearity"]]
    scaling = said.values.get("scaling", 1.0)
    scale = 1.0 if scaling in _LEARNED else float(scaling)
    return Bottleneck(*arrays, activation=activation, source=source, scale=scale)


def save(directory: str | Path, config: Decoder, delta: Delta, base_name: str = "", name: str = NAME) -> None:
    """Writes a delta of adapters. Raises `Fault` for a delta that holds anything else, and for a family or a placement
    that the library does not have."""
    family, _ = families.of(config)
    if family.kind not in FAMILIES:
        raise Fault(f"adapterhub: the library has no {family.kind}; it has {', '.join(FAMILIES)} of the families here")
    edits = _edits(spread(delta), trees.flatten(specs(config)))
    layers = dict(_layers(edits, config))
    widths = {n: max(part[1].shape[0] for part in parts.values()) for n, parts in layers.items()}
    found: dict[str, np.ndarray] = {}
    for number, parts in layers.items():
        for place, part in parts.items():
            down, down_bias, up, up_bias = _widened(part, widths[number])
            key = _key(config, number, place, name)
            found |= {f"{key}adapter_down.0.weight": down.T, f"{key}adapter_down.0.bias": down_bias}
            found |= {f"{key}adapter_up.weight": up.T, f"{key}adapter_up.bias": up_bias}
    first = next(iter(edits.values()))
    places = {place for parts in layers.values() for place in parts}
    said = {
        **{field: value for field, (value, _) in _NEEDED.items()},
        "mh_adapter": "attn/adapter" in places,
        "output_adapter": "mlp/adapter" in places,
        **_PLACED[first.source],
        **_ADDED,
        "non_linearity": _NAMES.get(first.activation, first.activation),
        "reduction_factor": _factors(widths, config),
        "scaling": float(first.scale),
        "leave_out": [n for n in range(config.layers) if n not in layers],
    }
    whole = {
        "config": dict(sorted(said.items())),
        "hidden_size": config.d,
        "model_class": family.architecture,
        "model_name": base_name,
        "model_type": family.kind,
        "name": name,
        "version": VERSION,
    }
    target = Path(directory).resolve()
    saving.by_the_first_process(target, lambda: adapter_files.write(target, WEIGHTS, whole, found))


def _edits(delta: Delta, flat: Mapping[str, Any]) -> dict[str, Bottleneck]:
    if not delta:
        raise Fault("adapterhub: the delta is empty; there is no adapter to write")
    for path, edit in delta.items():
        if not isinstance(edit, Bottleneck):
            raise Fault(
                f"adapterhub: {path} has an edit ({type(edit).__name__}) that is no adapter in the stream; write it "
                "with --to peft or hf"
            )
        if edit.source not in _PLACED:
            raise Fault(
                f"adapterhub: {path} holds an adapter that reads what its layer was given, normed; there none does"
            )
    if len({(edit.activation, edit.source, edit.scale) for edit in delta.values()}) > 1:
        raise Fault("adapterhub: the adapters differ in activation, source or scale, and there all have the same")
    return dict(delta)


def _layers(edits: Mapping[str, Bottleneck], config: Decoder) -> Iterator[tuple[int, dict[str, _Parts]]]:
    """The adapters of each layer that has one, by place; one that passes nothing on is none."""
    used = [place for place in _PLACES if any(path.endswith(place) for path in edits)]
    where = {n: (block, at) for block, numbers in blocks(config).items() for at, n in enumerate(numbers)}
    for number in range(config.layers):
        block, at = where[number]
        parts = {}
        for place in used:
            if edit := edits.get(f"{block}/{place}"):
                arrays = (np.asarray(x, np.float32) for x in (edit.down, edit.down_bias, edit.up, edit.up_bias))
                parts[place] = _trimmed(*(x[at] if is_stacked(block) else x for x in arrays))
        if any(np.any(up) or np.any(bias) for _, _, up, bias in parts.values()):
            nothing = np.zeros((config.d, 1)), np.zeros(1), np.zeros((1, config.d)), np.zeros(config.d)
            yield number, {place: parts.get(place, nothing) for place in used}


def _trimmed(down: np.ndarray, down_bias: np.ndarray, up: np.ndarray, up_bias: np.ndarray) -> _Parts:
    """Without the units of zeros that stacking under wider layers adds behind the others."""
    used = np.flatnonzero(np.any(down, axis=0) | (down_bias != 0) | np.any(up, axis=1))
    low = max(1, 1 + used[-1]) if len(used) else 1
    return down[:, :low], down_bias[:low], up[:low], up_bias


def _widened(part: _Parts, low: int) -> _Parts:
    more = low - part[1].shape[0]
    down, bias, up, up_bias = (x.astype(np.float32) for x in part)
    return np.pad(down, ((0, 0), (0, more))), np.pad(bias, (0, more)), np.pad(up, ((0, more), (0, 0))), up_bias


def _factors(widths: Mapping[int, int], config: Decoder) -> float | dict[str, float]:
    """Factors that give these widths: the width there is what is left of the model's width divided by its factor."""
    made: dict[int, float] = {
        n: config.d / (low + 0.5) if config.d % low else config.d // low for n, low in widths.items()
    }
    common = Counter(made.values()).most_common(1)[0][0] if made else 1
    others = {str(n): factor for n, factor in made.items() if factor != common}
    return {**others, "default": common} if others else common
