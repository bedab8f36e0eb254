# SPDX-License-Identifier: Apache-2.0
"""Plain changes of parameters as what PEFT saves whole: `modules_to_save`, and the biases of all or of the targeted
modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpost.arrays import Tree
from jaxpost.faults import Fault
from jaxpost.interop import names
from jaxpost.interop.names import Slot
from jaxpost.interop.peft.copies import Wholes
from jaxpost.interop.peft.modules import PREFIX, Layout, no_place, shortest


@dataclass(frozen=True)
class Whole:
    """Changes by path, over `base`; `targeted` modules are wrapped by an edit, and `biases` of modules can be saved
    alone."""

    changes: Mapping[str, list[Any]]
    layout: Layout
    base: Tree | None
    targeted: set[str]
    biases: bool


def written(whole: Whole) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    groups, shapes = whole.layout.groups, whole.layout.shapes
    touched = {name for name, slots in groups.items() if any(_changed(whole, slot) for slot in slots)}
    if not touched:
        return {"modules_to_save": None} | ({"bias": "none"} if whole.biases else {}), {}
    if whole.base is None:
        raise Fault(f"peft: {next(iter(touched))} is saved whole, which needs the base's weights")
    if whole.layout.config.tied and (table := next((n for n in touched if groups[n][0].path == "embed"), None)):
        raise no_place(f"{table} is the head too in this model, and PEFT keeps a copy of one of them")
    values = Wholes(whole.base)

    def tensor(name: str) -> np.ndarray:
        matrices = ((slot, _matrix(whole, values, slot)) for slot in groups[name])
        return names.tensor(matrices, shapes[name], np.dtype(np.float32))

    holders = {name.rsplit(".", 1)[0] for name in groups}
    alone = {name for name in touched if name.endswith(".bias") and f"{name[:-5]}.weight" not in touched}
    # A norm's bias goes with the norm; those of matrices have a setting of their own.
    alone = {name for name in alone if groups[name][0].path.rsplit("/", 2)[-2:][0] in ("attn", "mlp")}
    kind, biases = _kind(whole, alone, list(groups))
    saved = {name.rsplit(".", 1)[0] for name in touched - set(biases)}
    if wrapped := sorted(saved & whole.targeted):
        raise no_place(f"{wrapped[0]} has a plain change under another edit")
    kept = {name: name for name in groups if name.rsplit(".", 1)[0] in saved}
    kept |= {_bias_key(name, whole.targeted): name for name in biases if name not in kept}
    said: dict[str, Any] = {"modules_to_save": shortest(saved, holders, str.endswith) if saved else None}
    return said | ({"bias": kind} if whole.biases else {}), {PREFIX + key: tensor(n) for key, n in kept.items()}


def _kind(whole: Whole, alone: set[str], groups: list[str]) -> tuple[str, list[str]]:
    """Which setting covers the biases that changed, and all those that it then saves."""
    own = [name for name in groups if name.endswith(".bias") and name.rsplit(".", 1)[0] in whole.targeted]
    if not alone:
        return "none", []
    if not whole.biases:
        raise no_place(f"{min(alone)} is changed beside factors, and PEFT's IA3 has no place for biases")
    if alone <= set(own):
        return "lora_only", own
    return "all", [name for name in groups if name.endswith(".bias")]


def _bias_key(name: str, targeted: set[str]) -> str:
    module = name.rsplit(".", 1)[0]
    return f"{module}.base_layer.bias" if module in targeted else name


def _changed(whole: Whole, slot: Slot) -> bool:
    return any(np.any(_own(edit, slot)) for edit in whole.changes.get(slot.path, ()))


def _matrix(whole: Whole, values: Wholes, slot: Slot) -> np.ndarray:
    shape = (slot.inner, slot.outer) if slot.inner else (slot.outer,)
    matrix = values[slot.path][slot.index].reshape(shape)
    for edit in whole.changes.get(slot.path, ()):
        matrix = matrix + _own(edit, slot).reshape(shape)
    return matrix


def _own(edit: Any, slot: Slot) -> np.ndarray:
    return np.asarray(edit.dw, np.float32)[slot.index]
