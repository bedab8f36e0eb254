# SPDX-License-Identifier: Apache-2.0
"""What an adapter holds whole: modules and biases that were trained as they are. Here they are differences from the
base."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.delta import Dense, dense
from jaxpost.faults import Fault
from jaxpost.interop.adapter_files import Tensors
from jaxpost.interop.config_json import ConfigFields
from jaxpost.interop.names import Slot
from jaxpost.interop.peft import stacked
from jaxpost.interop.peft.modules import PREFIX, Layout, Module, meant
from jaxpost.models.architecture import Decoder


def copies(said: ConfigFields, found: Tensors, layout: Layout, base: Tree | None) -> dict[str, list[Any]]:
    """The differences by path."""
    keys = _keys(said, found, layout)
    if keys and base is None:
        raise Fault(f"{found.file}: holds {next(iter(keys))} whole; reading it needs the base's weights")
    wholes = Wholes(base)
    parts: dict[str, dict[stacked.Index, np.ndarray]] = defaultdict(dict)
    for key, name in keys.items():
        value = found.take(key, *layout.shapes[name])
        for slot in layout.groups[name]:
            matrix = own(value, slot)
            change = matrix - wholes[slot.path][slot.index].reshape(matrix.shape)
            if np.any(change):
                parts[slot.path][slot.index] = change
    return {path: [Dense(stacked.filled(layout.specs[path], of))] for path, of in parts.items()}


class Wholes(dict[str, np.ndarray]):
    """The base's parameters in float32 by path, fetched as they are asked for."""

    def __init__(self, base: Tree | None):
        super().__init__()
        self.flat = trees.flatten(base or {})

    def __missing__(self, path: str) -> np.ndarray:
        self[path] = np.asarray(dense(self.flat[path], jnp.float32))
        return self[path]


def own(value: np.ndarray, slot: Slot) -> np.ndarray:
    """The slot's matrix, `[in, out]`, of the stored tensor."""
    if not slot.inner:
        return value[slot.start : slot.start + slot.outer]
    turned = value if slot.input_major else value.T
    return turned[:, slot.start : slot.start + slot.outer]


def _keys(said: ConfigFields, found: Tensors, layout: Layout) -> dict[str, str]:
    """From each key that must be there to the tensor that it is."""
    keys = {f"{PREFIX}{name}": name for name in saved(said, layout.config, layout.groups)}
    chosen = [] if said.values.get("target_modules") is None else meant(said, layout.modules)
    targeted = {module.name for module in chosen}
    keys |= {_key(name, targeted): name for name in _biases(said, layout.groups, chosen)}
    # An adapter of the embedding or the head repeats the base's, which may have been changed.
    for module in layout.modules.values():
        if (key := module.key("base_layer.weight")) in found and (module.is_table or module.is_head):
            keys[key] = f"{module.name}.weight"
    if layout.config.tied:
        found.there.pop(f"{PREFIX}lm_head.base_layer.weight", None)
    return keys


def saved(said: ConfigFields, config: Decoder, groups: Iterable[str]) -> list[str]:
    """The tensors of the modules in `modules_to_save`, which holds ends of names."""
    ends = tuple(said.values.get("modules_to_save") or ())
    embed = [name for name in groups if name.endswith(("embed_tokens.weight", "wte.weight"))]
    if config.tied and ("lm_head" in ends or any(name.rsplit(".", 1)[0].endswith(ends) for name in embed if ends)):
        raise said.fault(
            "modules_to_save", "the embedding is the head too in this model, and a copy of one of them cannot be read"
        )
    if unknown := [end for end in ends if not any(_inside(name, end) for name in groups)]:
        raise said.fault("modules_to_save", f"this base has no {unknown[0]} (heads of other tasks are not read)")
    return [name for name in groups if any(_inside(name, end) for end in ends)]


def _inside(tensor: str, end: str) -> bool:
    """Whether a tensor belongs to a module whose name has this end, or to one inside it."""
    holders = tensor.split(".")[:-1]
    return any(".".join(holders[: i + 1]).endswith(end) for i in range(len(holders)))


def _biases(said: ConfigFields, groups: Iterable[str], chosen: list[Module]) -> list[str]:
    kind = said.values.get("bias") or "none"
    if kind == "none":
        return []
    if kind == "all":
        return [name for name in groups if name.endswith(".bias")]
    if kind in ("lora_only", "adalora_only"):
        return [f"{module.name}.bias" for module in chosen if module.biases]
    raise said.fault("bias", "known: none, all, lora_only")


def _key(name: str, targeted: Iterable[str]) -> str:
    module = name.rsplit(".", 1)[0]
    return f"{PREFIX}{module}.base_layer.bias" if module in targeted else f"{PREFIX}{name}"
