# SPDX-License-Identifier: Apache-2.0
"""Block sizes and the like: what was found best for a shape on a kind of device, and what will do elsewhere.

`<operation>/tuned/<device kind>.json` holds, for each implementation and shape, the fields of its frozen dataclass of
tunables; `tools/tune_kernels.py` writes it.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from jaxpost.shard import device_kind

T = TypeVar("T")
HERE = Path(__file__).parent


def tuned(operation: str, implementation: str, sizes: Mapping[str, Any], default: T) -> T:
    """`default`, a frozen dataclass of tunables, with what is stored for these sizes on the device that the program
    being traced is for. Sizes are those of the arrays that a kernel gets: on a mesh, one device's own pieces."""
    if (trial := _TRIALS.get((operation, implementation))) is not None:
        trial.asked.add(key(sizes))
        stored = trial.values
    else:
        stored = _table(table(operation, device_kind())).get(implementation, {}).get(key(sizes), {})
    return replace(default, **stored)  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclass
class Trial:
    """Values that are tried instead of those stored, and the names of the shapes that asked for any."""

    values: Mapping[str, Any]
    asked: set[str] = field(default_factory=set)


_TRIALS: dict[tuple[str, str], Trial] = {}


@contextlib.contextmanager
def trying(operation: str, implementation: str, values: Mapping[str, Any]) -> Iterator[Trial]:
    """Programs traced inside are given these values, whatever is stored: for searching."""
    _TRIALS[operation, implementation] = trial = Trial(values)
    try:
        yield trial
    finally:
        del _TRIALS[operation, implementation]


def key(sizes: Mapping[str, Any]) -> str:
    """The name of a shape in a table: `t=64 i=4096 o=14336`."""
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def table(operation: str, kind: str) -> Path:
    """Where the table of an operation for a kind of device lies."""
    return HERE / operation / "tuned" / f"{kind.lower().replace(' ', '_')}.json"


@functools.cache
def _table(path: Path) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    return json.loads(path.read_text()) if path.is_file() else {}
