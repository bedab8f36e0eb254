# SPDX-License-Identifier: Apache-2.0
"""A delta as a directory that PEFT reads."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost import delta as deltas
from jaxpost.arrays import Tree
from jaxpost.delta import Delta, low_rank
from jaxpost.faults import Fault
from jaxpost.interop import adapter_files, saving
from jaxpost.interop.peft import modules, prompts
from jaxpost.interop.peft.factors import written_factors, written_triplets
from jaxpost.interop.peft.modules import Layout, Module, no_place, shortest
from jaxpost.interop.peft.wholes import Whole, written
from jaxpost.models.architecture import Decoder

WEIGHTS = "adapter_model.safetensors"


def save(directory: str | Path, config: Decoder, delta: Delta, base_name: str = "", base: Tree | None = None) -> None:
    """Writes a delta over the model as an adapter of it, with its factors in float32.

    `base_name` is what PEFT will load the model from. `base` are the model's weights, which a delta needs that holds
    plain changes of some modules: PEFT keeps those whole. Raises `Fault` for what PEFT has no form for, or not beside
    the rest of the delta.
    """
    parts = sorted_out(deltas.spread(delta))
    values, found = _by_kind(parts, modules.layout(config), base)
    said = {"task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": base_name or None, **values}
    target = Path(directory).resolve()
    saving.by_the_first_process(target, lambda: adapter_files.write(target, WEIGHTS, said, found))


@dataclass
class Parts:
    """The edits of a delta by what they are, each by path; stacked ones taken apart."""

    low: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    magnitudes: dict[str, Any] = field(default_factory=dict)
    triplets: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    changes: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    filled: dict[str, Any] = field(default_factory=dict)


def sorted_out(delta: Delta) -> Parts:
    parts = Parts()
    for path, edit in delta.items():
        for one in _flat(edit):
            _sort(parts, path, one)
    return parts


def _flat(edit: Any) -> list[Any]:
    return [one for part in edit.edits for one in _flat(part)] if isinstance(edit, deltas.Stack) else [edit]


def _sort(parts: Parts, path: str, edit: Any) -> None:
    if path in parts.magnitudes:
        raise no_place(f"{path} has an edit over its magnitude")
    match edit:
        case deltas.LowRank():
            parts.low[path].append(edit)
        case deltas.Svd() if path not in parts.triplets:
            parts.triplets[path] = edit
        case low_rank.Factors():
            parts.low[path].append(edit.low_rank())
        case deltas.Magnitude():
            parts.magnitudes[path] = edit
        case deltas.Scale():
            parts.factors[path].append(edit)
        case deltas.Dense() if not isinstance(edit.dw, deltas.Bound) and hasattr(edit.dw, "dtype"):
            parts.changes[path].append(edit)
        case deltas.Insert():
            parts.filled[path] = edit.value
        case deltas.Bottleneck():
            raise Fault(
                f"peft: {path} holds an adapter in the stream, and PEFT has no form for one; write --to adapterhub"
            )
        case _:
            raise no_place(f"{path} has an edit ({type(edit).__name__}) that PEFT has no form for")


Written = tuple[dict[str, Any], dict[str, np.ndarray]]
"""What a config says, and the tensors."""


def _by_kind(parts: Parts, layout: Layout, base: Tree | None) -> Written:
    config, known = layout.config, layout.modules
    places = {path: value for path, value in parts.filled.items() if not path.endswith("_bias")}
    weights = [*parts.low, *parts.triplets, *parts.factors, *parts.changes]
    if places and weights:
        raise no_place(f"{next(iter(places))} is filled and {weights[0]} edited, and PEFT's prompts stand alone")
    if "prompt" in places:
        _alone(places, ["prompt"])
        found, said = prompts.written_prompt(places["prompt"], config)
        return said, found
    if places:
        _alone(places, [path for path in places if path.endswith(("/prefix_k", "/prefix_v"))])
        found, said = prompts.written_prefix(places, config)
        return said, found
    if parts.factors:
        said, found, targeted = _ia3(parts, known)
    elif parts.triplets and not (parts.low or parts.magnitudes):
        said, found, targeted = written_triplets(parts, known)
    else:
        for path, edit in parts.triplets.items():
            parts.low[path].append(edit.low_rank())
        said, found, targeted = written_factors(parts, known, config)
    whole = Whole(parts.changes, layout, base, targeted, biases=not parts.factors)
    more, copies = written(whole)
    return {**said, **more}, {**found, **copies}


def _alone(places: Mapping[str, Any], own: list[str]) -> None:
    if not own:
        raise no_place(f"{next(iter(places))} is filled, and PEFT has no form for that")
    if other := [path for path in places if path not in own]:
        raise no_place(f"{other[0]} is filled beside {own[0]}, and an adapter there fills one kind of place")


def _ia3(parts: Parts, known: Mapping[str, Module]) -> tuple[dict[str, Any], dict[str, np.ndarray], set[str]]:
    if other := [*parts.low, *parts.triplets, *parts.filled]:
        raise no_place(f"{other[0]} has an edit of another kind than the factors of {next(iter(parts.factors))}")
    found: dict[str, np.ndarray] = {}
    feeding: set[str] = set()
    for module in known.values():
        for side in ("in", "out"):
            own = {slot: _factors(parts, slot, side) for slot in module.slots}
            if all(np.all(of == 1) for of in own.values()):
                continue
            key = module.key("ia3_l")
            if key in found:
                raise no_place(f"{module.slots[0].path} has factors of both sides")
            if side == "out":
                found[key] = np.concatenate(list(own.values()))[:, None]
                _check_biases(parts, module, found[key][:, 0])
            else:
                first, *rest = own.values()
                if any(not np.array_equal(first, of) for of in rest):
                    raise no_place(f"{module.name} is one module there, and its inputs have several factors")
                found[key] = first[None]
                feeding.add(module.name)
    targeted = {module.name for module in known.values() if module.key("ia3_l") in found}
    # A module is fed if its name ends like one of these, dots or not, and they must be among the targets.
    fed = shortest(feeding, known, str.endswith)
    said = {
        "peft_type": "IA3",
        "target_modules": sorted({*fed, *shortest(targeted - feeding, known)}),
        "feedforward_modules": fed,
        "fan_in_fan_out": any(known[name].slots[0].input_major and not known[name].is_table for name in targeted),
        "init_ia3_weights": True,
    }
    return said, found, targeted


def _factors(parts: Parts, slot: Any, side: str) -> np.ndarray:
    """The product of all factors on this side of a slot's matrix."""
    made = np.ones(slot.inner if side == "in" else slot.outer, np.float32)
    for edit in parts.factors.get(slot.path, ()):
        if edit.side == side:
            made = made * np.asarray(edit.s, np.float32)[slot.index].reshape(-1)
    return made


def _check_biases(parts: Parts, module: Module, factors: np.ndarray) -> None:
    """There a factor of outputs is one of their biases too."""
    for slot in module.biases:
        if not np.array_equal(
            _factors(parts, replace(slot, inner=1), "out"), factors[slot.start : slot.start + slot.outer]
        ):
            raise no_place(f"{slot.path} has no factors, or others than its weight, and PEFT scales both alike")
