# SPDX-License-Identifier: Apache-2.0
"""IA3 as PEFT writes it, read as edits of parameters."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpost.delta import Scale
from jaxpost.interop.adapter_files import Tensors
from jaxpost.interop.config_json import ConfigFields
from jaxpost.interop.names import Slot
from jaxpost.interop.peft.modules import Layout, Module, meant
from jaxpost.params import ParamSpec

Side = str


def ia3(said: ConfigFields, found: Tensors, layout: Layout) -> dict[str, list[Any]]:
    """The edits by path. Where outputs are scaled, so are their biases: the factor comes last there."""
    parts: dict[tuple[str, Side], dict[tuple[int, ...], np.ndarray]] = defaultdict(dict)
    for module in meant(said, layout.modules):
        if _feeds(said, module):
            factors = found.take(module.key("ia3_l"), 1, module.inner)[0]
            for slot in module.slots:
                parts[slot.path, "in"][slot.index] = factors
        else:
            factors = found.take(module.key("ia3_l"), module.outer, 1)[:, 0]
            for slot in (*module.slots, *module.biases):
                parts[slot.path, "out"][slot.index] = _cut(factors, slot)
    made: dict[str, list[Any]] = defaultdict(list)
    for (path, side), factors in parts.items():
        made[path].append(scale(layout.specs[path], side, factors))
    return made


def scale(spec: ParamSpec, side: Side, factors: Mapping[tuple[int, ...], np.ndarray]) -> Scale:
    """The edit of a parameter; layers without a factor have ones."""
    lead, inner, outer = spec.sizes(0), spec.sizes(1), spec.sizes(2)
    ones = (*inner, *(1,) * len(outer)) if side == "in" else (*(1,) * len(inner), *outer)
    s = np.ones((*lead, *ones), np.float32)
    for index, of in factors.items():
        s[index] = of.reshape(ones)
    return Scale(jnp.asarray(s), "in" if side == "in" else "out")


def _cut(factors: np.ndarray, slot: Slot) -> np.ndarray:
    return factors[slot.start : slot.start + slot.outer]


def _feeds(said: ConfigFields, module: Module) -> bool:
    """Whether the module's inputs are scaled, not its outputs."""
    chosen = said.values.get("feedforward_modules") or ()
    if isinstance(chosen, str):
        return bool(re.fullmatch(chosen, module.name))
    return any(module.name.endswith(end) for end in chosen)
