# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters of AdapterHub's library, in and out: adapter_config.json and adapter.safetensors (or
pytorch_adapter.bin, as it saves by default). Facts are those of adapters 1.3.

There an adapter changes what attention or MLP adds to the stream, from what they make of it: Houlsby's, and
Pfeiffer's where `original_ln_before` is false. Its other placements read the stream itself; they are refused by name.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpost import trees
from jaxpost.delta import Bottleneck, Delta, spread
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
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu", "tanh": "tanh"}
_NEEDED: Mapping[str, tuple[Any, str]] = {
    "original_ln_before": (False, "the adapter reads the stream, what it is added to with it"),
    "is_parallel": (False, "the adapter reads the stream, not what it stands behind"),
    "original_ln_after": (True, "what attention and MLP make would not be added to the stream"),
    "ln_before": (False, "the adapter has a norm of its own"),
    "ln_after": (False, "the adapter has a norm of its own"),
    "use_gating": (False, "the adapter has a gate"),
    "phm_layer": (False, "its matrices are sums of Kronecker products (Compacter)"),
    "inv_adapter": (None, "it holds invertible adapters of the embeddings"),
}
"""What else these fields may say, and what that would mean."""

_USED = ("mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "scaling", "leave_out")
_IGNORED = (
    "architecture", "dropout", "stochastic_depth", "init_weights", "init_weights_seed", "residual_before_ln",
    "adapter_residual_before_ln", "inv_adapter_reduction_factor", "cross_adapter", "phm_dim", "factorized_phm_W",
    "shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range", "learn_phm",
    "hypercomplex_nonlinearity", "phm_rank", "phm_bias",
)  # fmt: skip


def load(directory: str | Path, config: Decoder) -> dict[str, Any]:
    """The delta over the model that an adapter directory holds, in float32."""
    directory = Path(directory)
    whole = adapter_files.said(directory)
    said = whole.inside("config")
    if said is None:
        raise whole.fault("config", "it must be an object: what kind of adapter this is")
    _check(said)
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
                made[f"{block}/{place}"] = _stacked(parts, numbers, block, said, config)
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
    return down.T, down_bias, found.take(f"{key}adapter_up.weight", d, low).T, found.take(f"{key}adapter_up.bias", d)


def _stacked(
    parts: Mapping[int, _Parts], numbers: tuple[int, ...], block: str, said: ConfigFields, config: Decoder
) -> Bottleneck:
    """Of all layers of a block; narrower ones are filled up with zeros, which pass nothing on."""
    low = max(part[1].shape[0] for part in parts.values())
    shapes = ((config.d, low), (low,), (low, config.d), (config.d,))
    wholes = [np.zeros((len(numbers), *shape), np.float32) for shape in shapes]
    for at, number in enumerate(numbers):
        for whole, part in zip(wholes, parts.get(number, ()), strict=False):
            whole[at][tuple(map(slice, part.shape))] = part
    arrays = [jnp.asarray(whole if is_stacked(block) else whole[0]) for whole in wholes]
    activation: Any = _ACTIVATIONS[said.values["non_linearity"]]
    scaling = said.values.get("scaling", 1.0)
    if not isinstance(scaling, int | float):
        raise said.fault("scaling", "only a number is read")
    return Bottleneck(*arrays, activation=activation, scale=float(scaling))


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
        "residual_before_ln": True,
        "non_linearity": {"silu": "swish"}.get(first.activation, first.activation),
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
        if edit.source != "own":
            raise Fault(f"adapterhub: {path} holds an adapter beside its layer, of the normed stream; there it is not")
    if len({(edit.activation, edit.scale) for edit in delta.values()}) > 1:
        raise Fault("adapterhub: the adapters differ in activation or scale, and there all have the same")
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
