# SPDX-License-Identifier: Apache-2.0
"""The config that a command line means: what a file says, with fields changed by flags."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxpost.faults import Fault


def configured(name: str, arguments: Sequence[str], command: str) -> Any:
    """The config of that name with what the flags change. Raises `Fault` for what a field cannot hold, be it a flag's
    or the file's."""
    from jaxpost.recipes import configs, flags

    config = configs.load(name)
    if said := misfit(config):  # nothing looks at the types in a Python file when it is run
        raise Fault(f"{name}: {said}")
    return flags.override(config, arguments, command)


def misfit(config: Any, prefix: str = "") -> str:
    """The first field of a config that holds what it cannot, in words; no words if there is none."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value, hint = prefix + field.name, getattr(config, field.name), hints[field.name]
        if not _fits(value, hint):
            found = type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
            return f"{name} is {found}; it takes {_kinds(hint)}"
        if dataclasses.is_dataclass(value) and (said := misfit(value, f"{name}.")):
            return said
    return ""


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1:] == (...,) and isinstance(value, tuple | list) else inner
        alike = isinstance(value, tuple | list) and len(kinds) == len(value)
        return alike and all(_fits(one, kind) for one, kind in zip(value, kinds, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, inner[1]) for one in value.values())
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _kinds(hint: Any) -> str:
    """A type in words."""
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_kinds, inner))
    return hint.__name__ if isinstance(hint, type) and not inner else str(hint)
