# SPDX-License-Identifier: Apache-2.0
"""Functions that users write in files of their own, found by path and called under their own name."""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxpost.faults import Fault, nearest


@dataclass(frozen=True)
class Written:
    """A function of a user's file. What goes wrong in it is said as file, line and error."""

    path: Path
    name: str
    function: Callable[..., Any]

    def __call__(self, *given: Any) -> Any:
        return _said(lambda: self.function(*given), self.path, f" in {self.name}")


def written(path: Path, name: str) -> Written:
    """The function of that name in that file, which is executed once. Raises `Fault` if there is none."""
    if not path.is_file():
        raise Fault(f"{path}: no such file; a function of your own is given as FILE.py:FUNCTION")
    module = _executed(path.resolve())
    own = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
    if name not in vars(module):
        raise Fault(f"{path} has no function {name!r}; {nearest(name, own)}")
    if not callable(function := vars(module)[name]):
        raise Fault(f"{path}: {name} is no function but {type(function).__name__}; {nearest(name, own)}")
    return Written(path, name, function)


@cache
def _executed(path: Path) -> ModuleType:
    # Under a name of its own: a file called random.py must not become everybody's `random`.
    name = f"jaxpost_written_{path.stem}_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = module  # before it is executed, or its dataclasses cannot be resolved
    sys.path.append(str(path.parent))  # it may be made from its neighbours
    _said(lambda: loader.exec_module(module), path)
    return module


def _said(act: Callable[[], Any], path: Path, where: str = "") -> Any:
    try:
        return act()
    except Fault:
        raise
    except SyntaxError as error:
        raise Fault(f"{error.filename or path}, line {error.lineno}: not Python, {error.msg}") from error
    except Exception as error:
        frames = reversed(traceback.extract_tb(error.__traceback__))
        line = next((frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()), "?")
        raise Fault(f"{path}, line {line}{where}: {type(error).__name__}: {error}") from error
