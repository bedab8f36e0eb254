# SPDX-License-Identifier: Apache-2.0
"""Runs as Python functions: found by path, called, and changed field by field."""

import importlib.util
import inspect
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

from jaxpost.faults import Fault, nearest
from jaxpost.recipes import record


def load(name: str) -> Any:
    """The config that `FILE.py`, `FILE.py:FUNCTION` (default: base) or a run directory stands for."""
    path, _, function = name.partition(":")
    if Path(path).is_dir():
        return record.read(Path(path))
    functions = listed(Path(path))
    function = function or "base"
    if function not in functions:
        raise Fault(f"{path} has no config {function!r}; {nearest(function, functions)}")
    return functions[function]()


def listed(path: Path) -> dict[str, Any]:
    """The functions of a file that return a config, by name."""
    module = _executed(path)
    found = {}
    for name, value in vars(module).items():
        own = inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        if own and not inspect.signature(value).parameters:
            found[name] = value
    return found


def override(config: Any, arguments: Sequence[str], command: str) -> Any:
    """The config with fields changed by flags, `--optim.lr 3e-4`. Flags change fields, never their kinds."""
    kinds = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    return tyro.cli(type(config), default=config, args=list(arguments), prog=command, config=kinds)


def run_directory(config: Any) -> Path:
    return Path(config.run)


def recipe(config: Any) -> ModuleType:
    """The recipe that a config is for: the module that defines its type."""
    module = sys.modules[type(config).__module__]
    if not is_dataclass(config) or not hasattr(module, "main"):
        raise Fault(f"{type(config).__name__} is not the config of a recipe; return one, such as sft.Config")
    return module


def _executed(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise Fault(f"{path}: no such config file or run directory; {nearest(str(path), known)}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it is executed, or its dataclasses cannot be resolved
    sys.path.insert(0, str(path.parent.resolve()))  # a config may be made from its neighbours
    try:
        spec.loader.exec_module(module)
    except Fault:
        raise
    except Exception as error:
        line = next((f.lineno for f in reversed(inspect.getinnerframes(error.__traceback__)) if f.filename == str(path)), "?")
        raise Fault(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module
