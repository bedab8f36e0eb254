# SPDX-License-Identifier: Apache-2.0
"""A run's config as JSON, and back: nested frozen dataclasses with the names of their types."""

import dataclasses
import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpost.faults import Fault, nearest
from jaxpost.train.metrics import write_json

FILE = "config.json"


def encode(value: Any, where: str = "") -> Any:
    """Dataclasses become objects with a `type`, tuples lists; everything else must be JSON already. `where` is the
    dotted name of what is encoded, for the `Fault` that anything else raises."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        _type(name, where or type(value).__name__)
        names = [f.name for f in dataclasses.fields(value)]
        return {"type": name, **{n: encode(getattr(value, n), f"{where}.{n}".lstrip(".")) for n in names}}
    if isinstance(value, Mapping):
        return {str(name): encode(item, where) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, where) for item in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise Fault(
        f"{where} is {value!r}, which a config cannot hold: it is recorded as JSON (numbers, text, tuples, mappings)"
    )


def decode(value: Any, where: str = FILE) -> Any:
    """The inverse of `encode` (lists come back as tuples: a config holds no lists)."""
    if isinstance(value, list):
        return tuple(decode(item, where) for item in value)
    if not isinstance(value, dict):
        return value
    if not _is_typed(value):
        return {name: decode(item, where) for name, item in value.items()}
    kind = _type(value["type"], where)
    fields = {name: decode(item, where) for name, item in value.items() if name != "type"}
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(fields.keys() - known):
        raise Fault(f"{where}: {kind.__name__} has no field {unknown[0]!r}; {nearest(unknown[0], known)}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise Fault(f"{where}: {kind.__name__} lacks a field, or has one of a wrong type ({error})") from error


def recorded(config: Any) -> Any:
    """The config as it will be read back from its record. What cannot be recorded cannot be run: raises `Fault`."""
    return decode(encode(config))


def write(run: Path, config: Any) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(
            f"cannot make {run} ({error.strerror or error}); choose another run directory with --run"
        ) from error
    write_json(run / FILE, encode(config))


def read(run: Path) -> Any:
    """The config of a run directory."""
    path = run / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Fault(f"{run} is no run directory: it has no {FILE}") from error
    except json.JSONDecodeError as error:
        raise Fault(f"{path} is not JSON (line {error.lineno}: {error.msg})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Fault(f"{path} cannot be read ({error})") from error
    if not _is_typed(content):
        raise Fault(f"{run} is no run directory: its {FILE} is not the record of a run")
    return decode(content, str(path))


def is_run(directory: Path) -> bool:
    """Whether a run has left its record there (a model directory has a file of the same name)."""
    try:
        return _is_typed(json.loads((directory / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return (directory / "checkpoints").is_dir()


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
        raise Fault(f"{where}: {name!r} is no type of jaxpost's; a config is recorded, and only those are read back")
    try:
        kind = getattr(importlib.import_module(module), qualname)
    except (ImportError, AttributeError) as error:
        raise Fault(f"{where}: this version of jaxpost has no type {name!r}") from error
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise Fault(f"{where}: {name!r} is no config type")
    return kind


def _is_typed(value: Any) -> bool:
    """Whether an object stands for a dataclass; a mapping may have a key `type` as well."""
    return isinstance(value, dict) and isinstance(value.get("type"), str) and ":" in value["type"]
