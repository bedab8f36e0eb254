# SPDX-License-Identifier: Apache-2.0
"""A run's config as JSON, and back: nested frozen dataclasses with the names of their types."""

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpost.faults import Fault, nearest

FILE = "config.json"


def encode(value: Any) -> Any:
    """Dataclasses become objects with a `type`; tuples become lists; everything else must be JSON already."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, Mapping):
        return {str(name): encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any, where: str = FILE) -> Any:
    """The inverse of `encode` (lists come back as tuples: a config holds no lists)."""
    if isinstance(value, list):
        return tuple(decode(item, where) for item in value)
    if not isinstance(value, dict):
        return value
    if "type" not in value:
        return {name: decode(item, where) for name, item in value.items()}
    kind = _type(value["type"], where)
    fields = {name: decode(item, where) for name, item in value.items() if name != "type"}
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(fields.keys() - known):
        raise Fault(f"{where}: {kind.__name__} has no field {unknown[0]!r}; {nearest(unknown[0], known)}")
    return kind(**fields)


def write(run: Path, config: Any) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / FILE).write_text(json.dumps(encode(config), indent=2) + "\n")


def read(run: Path) -> Any:
    """The config of a run directory."""
    path = run / FILE
    try:
        return decode(json.loads(path.read_text()), str(path))
    except FileNotFoundError as error:
        raise Fault(f"{run} is no run directory: it has no {FILE}") from error
    except json.JSONDecodeError as error:
        raise Fault(f"{path} is not JSON (line {error.lineno}: {error.msg})") from error


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs of one kind differ, by their dotted names."""
    if not dataclasses.is_dataclass(old) or type(old) is not type(new):
        return {} if old == new else {prefix: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for f in dataclasses.fields(old):
        name = f"{prefix}.{f.name}" if prefix else f.name
        found |= differences(getattr(old, f.name), getattr(new, f.name), name)
    return found


def _type(name: str, where: str) -> type:
    module, _, qualname = name.partition(":")
    if not module.startswith("jaxpost."):
        raise Fault(f"{where}: type {name!r} is not jaxpost's; only its own config types are read")
    try:
        return getattr(importlib.import_module(module), qualname)
    except (ImportError, AttributeError) as error:
        raise Fault(f"{where}: this version of jaxpost has no type {name!r}") from error
