# SPDX-License-Identifier: Apache-2.0
"""The modules of a family's model as PEFT names them, and which of them a config means."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from jaxpost import trees
from jaxpost.faults import Fault
from jaxpost.interop import families, names
from jaxpost.interop.config_json import ConfigFields
from jaxpost.interop.names import Slot
from jaxpost.models.architecture import Decoder, specs

PREFIX = "base_model.model."
TABLES = ("embed", "positions")


@dataclass(frozen=True)
class Module:
    """A module with a matrix: that of one parameter, or of several one behind the other along the out axis. `biases`
    are the slots of its bias."""

    name: str
    slots: tuple[Slot, ...]
    biases: tuple[Slot, ...]

    @property
    def inner(self) -> int:
        return self.slots[0].inner

    @property
    def outer(self) -> int:
        return sum(slot.outer for slot in self.slots)

    @property
    def is_table(self) -> bool:
        return self.slots[0].path in TABLES

    @property
    def is_head(self) -> bool:
        return self.slots[0].path == "head"

    def key(self, part: str) -> str:
        """The name in a file of this part of an adapter of the module."""
        return f"{PREFIX}{self.name}.{part}"


class Layout:
    """A decoder as a family's checkpoints lay it out: what each tensor is made of, and the modules with a matrix, both
    in the order of the model."""

    def __init__(self, config: Decoder):
        self.config, self.family = config, families.of(config)[0]
        self.specs = trees.flatten(specs(config))
        self.groups = names.grouped(names.parts(self.family, config))
        self.shapes = names.shapes(slot for group in self.groups.values() for slot in group)
        matrices = {name: slots for name, slots in self.groups.items() if slots[0].inner}
        self.modules = {
            (name := tensor.removesuffix(".weight")): Module(
                name, tuple(slots), tuple(self.groups.get(f"{name}.bias", ()))
            )
            for tensor, slots in matrices.items()
        }


def layout(config: Decoder) -> Layout:
    return _layout(config, config.family)


@lru_cache(maxsize=8)
def _layout(config: Decoder, family: str) -> Layout:
    """The family is no part of what makes configs equal."""
    return Layout(config)


def meant(said: ConfigFields, known: Mapping[str, Module]) -> list[Module]:
    """The modules that a config targets, by PEFT's rules: a list holds names or ends of names, a string is a pattern
    of whole names or `all-linear`."""
    targets, excluded = said.values.get("target_modules"), said.values.get("exclude_modules") or ()
    kept = said.values.get("modules_to_save") or ()
    if targets is None or targets == []:
        if said.values.get("target_parameters"):
            return []
        raise said.fault("target_modules", "it must name modules")
    if not _is_choice(targets) or not _is_choice(excluded):
        raise said.fault("target_modules", "it must be a pattern, or a list of names, as exclude_modules must")
    found = []
    for name, module in known.items():
        if _matches(said, name, excluded) or any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in kept):
            continue
        if targets == "all-linear":
            chosen = not module.is_table and not module.is_head
        else:
            chosen = _matches(said, name, targets) and (isinstance(targets, str) or _in_layers(said, name))
        if chosen:
            found.append(module)
    if not found:
        raise said.fault(
            "target_modules", f"no module of this base is meant by it; some are {', '.join(list(known)[:8])}"
        )
    return found


def _is_choice(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))


def _matches(said: ConfigFields, name: str, targets: str | Collection[str]) -> bool:
    if not isinstance(targets, str):
        return ends(name, targets)
    try:
        return bool(re.fullmatch(targets, name))
    except re.error as error:
        raise said.fault("target_modules", f"it is no regular expression ({error})") from error


def ends(name: str, targets: Iterable[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _in_layers(said: ConfigFields, name: str) -> bool:
    """Whether `layers_to_transform` leaves the module's layer in: the first number behind a dot is the layer's."""
    layers = said.values.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = said.values.get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = next((m for p in patterns if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", name))), None)
    return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)


def pattern_value(patterns: Mapping[str, float] | None, name: str, default: float) -> float:
    """The value that a `rank_pattern` or `alpha_pattern` has for a module: of the first whose pattern its end fits."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def shortest(
    chosen: Collection[str], among: Collection[str], fits: Callable[[str, str], bool] = lambda n, t: ends(n, (t,))
) -> list[str]:
    """Ends of names that mean just the chosen ones among these: as short as can be, sorted."""
    found = set()
    for name in chosen:
        parts = name.split(".")
        candidates = (".".join(parts[i:]) for i in reversed(range(len(parts))))
        # An end with a layer's number in it says no more than the whole name.
        alike = (c for c in candidates if not any(part.isdigit() for part in c.split(".")))
        found.add(next((c for c in alike if all(n in chosen for n in among if fits(n, c))), name))
    return sorted(found)


def refuse_others(said: ConfigFields, plain: Mapping[str, tuple[object, ...]]) -> None:
    """Fields that may only say what these lists hold (or nothing): what else they say changes what is computed."""
    for name, values in plain.items():
        value = said.values.get(name)
        if value not in (None, False, [], {}, "", *values):
            raise said.fault(name, "adapters that say so are not read")


def no_place(what: str) -> Fault:
    return Fault(f"peft: {what}; write the whole model with --to hf")
