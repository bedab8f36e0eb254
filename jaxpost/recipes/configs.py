# SPDX-License-Identifier: Apache-2.0
"""Runs as Python functions: found by path, and called."""

import ast
import dataclasses
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxpost.faults import Fault, nearest
from jaxpost.recipes import record


def load(name: str) -> Any:
    """The config that `FILE.py`, `FILE.py:FUNCTION` (default: base) or a run directory stands for. A run directory
    that was moved stands for a run in its new place."""
    if Path(name).is_dir():
        config = record.read(Path(name))
        recipe(config)
        return dataclasses.replace(config, run=name)
    path, _, function = name.partition(":")
    module = _executed(Path(path))
    functions = {key: value for key, value in vars(module).items() if _is_config(value, module)}
    function = function or "base"
    if function not in functions:
        raise Fault(f"{path} has no config {function!r}; {nearest(function, functions)}")
    config = _said(functions[function], Path(path))
    recipe(config)
    return record.recorded(config)


def listed(path: Path) -> tuple[str, list[str]]:
    """What a file says of itself, and the names of its functions that take nothing, which are its configs. The file is
    read, not executed: a directory may hold other Python files too."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        return f"(cannot be read: {error})", []
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    names = [node.name for node in found if not any(vars(node.args).values()) and not _gives_none(node)]
    purpose = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return purpose, names if _imports_jaxpost(tree) else []


def recipe(config: Any) -> ModuleType:
    """The recipe that a config is for: the module that defines its type."""
    module = sys.modules.get(type(config).__module__)
    if not dataclasses.is_dataclass(config) or not hasattr(module, "main"):
        raise Fault(f"{type(config).__name__} is not the config of a recipe; return one, such as sft.Config(...)")
    assert module is not None
    return module


def _is_config(value: Any, module: ModuleType) -> bool:
    own = inspect.isfunction(value) and value.__module__ == module.__name__ and not value.__name__.startswith("_")
    return own and not inspect.signature(value).parameters


def _gives_none(node: ast.FunctionDef) -> bool:
    return isinstance(node.returns, ast.Constant) and node.returns.value is None


def _imports_jaxpost(tree: ast.Module) -> bool:
    names = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    return any(name.partition(".")[0] == "jaxpost" for name in names)


def _executed(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise Fault(f"{path}: no such config file or run directory; {nearest(str(path), known)}")
    # Under a name of its own: a config called random.py must not become everybody's `random`.
    name = f"jaxpost_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it is executed, or its dataclasses cannot be resolved
    sys.path.append(str(path.parent.resolve()))  # a config may be made from its neighbours, its functions too
    loader = spec.loader
    _said(lambda: loader.exec_module(module), path)
    return module


def _said(act: Callable[[], Any], path: Path) -> Any:
    """What a config file does, with whatever goes wrong in it said as file, line and fault."""
    try:
        return act()
    except Fault:
        raise
    except SyntaxError as error:
        raise Fault(f"{error.filename or path}, line {error.lineno}: not Python, {error.msg}") from error
    except Exception as error:
        frames = reversed(traceback.extract_tb(error.__traceback__))
        line = next((frame.lineno for frame in frames if Path(frame.filename) == path), "?")
        raise Fault(f"{path}, line {line}: {type(error).__name__}: {error}{_offered(str(error))}") from error


def _offered(message: str) -> str:
    """For a field that a config type does not have, those that it has (if it is not named, those of all types)."""
    found = re.match(r"(?:(\w+)\.__init__\(\) )?got an unexpected keyword argument '(\w+)'", message)
    if not found:
        return ""
    kind, name = found.groups()
    modules = [module for key, module in sys.modules.items() if key.startswith("jaxpost.")]
    types = [value for module in modules for key, value in vars(module).items() if key == (kind or key)]
    known = {field.name for value in types if dataclasses.is_dataclass(value) for field in dataclasses.fields(value)}
    return f"; {nearest(name, known)}" if known else ""
