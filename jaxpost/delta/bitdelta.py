# SPDX-License-Identifier: Apache-2.0
"""One-bit deltas as a method (only their scales are trained) and as a file, which is all that is kept of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxpost.arrays import Tree
from jaxpost.delta.bind import Delta
from jaxpost.delta.dense import Dense
from jaxpost.delta.method import Given, Method
from jaxpost.delta.one_bit import TARGETS, OneBit, one_bit_specs
from jaxpost.faults import Fault

MADE_BY = {"format": "jaxpost one-bit delta"}


@dataclass(frozen=True)
class BitDelta(Method):
    """The one-bit delta of `file`, which `write` wrote, its scales to be trained (Liu et al. 2024,
    https://arxiv.org/abs/2402.10193); without a file, one that changes nothing."""

    file: str = ""
    targets: tuple[str, ...] = TARGETS

    def __call__(self, specs: Tree) -> dict[str, Any]:
        return one_bit_specs(specs, self.targets)

    def within(self, run: Path) -> "BitDelta":
        there = run / Path(self.file).name
        return replace(self, file=str(there)) if self.file and there.is_file() else self

    def start(self, delta: Delta, given: Given) -> dict[str, Any]:
        return dict(delta) if not self.file else filled(delta, Path(self.file))


def write(file: Path, delta: Delta) -> None:
    """All of a one-bit delta, whole or not at all: of each path `bits`, eight signs a byte, and `scale`, or `dw`."""
    arrays = {name: np.asarray(x) for path, edit in delta.items() for name, x in _arrays(path, edit).items()}
    beside = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, beside, MADE_BY)
        os.replace(beside, file)
    except OSError as error:
        raise Fault(f"cannot write {file} ({error.strerror or error}); free some space or check its folder") from error


def filled(delta: Delta, file: Path) -> dict[str, Any]:
    """The delta with the numbers of a file; what it does not name was not tuned, and stays. Raises `Fault` where the
    file cannot be read, or is of a model of another shape."""
    try:
        there: dict[str, np.ndarray] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise Fault(f"{file}: cannot be read as a one-bit delta ({error}); the run that made it needs it") from error
    done = {}
    for path, edit in delta.items():
        mine = {name: there.pop(name) for name in _arrays(path, edit) if name in there}
        done[path] = _with(edit, path, mine, file) if mine else edit
    if there:
        raise Fault(f"{file}: the model has no place for {', '.join(sorted(there))}; it was made over another base")
    return done


def _arrays(path: str, edit: Any) -> dict[str, Any]:
    """The arrays of an edit by their names in a file."""
    match edit:
        case OneBit():
            return {f"{path}.bits": edit.bits.codes, f"{path}.scale": edit.scale}
        case Dense():
            return {f"{path}.dw": edit.dw}
    raise Fault(f"{path!r} is edited by a {type(edit).__name__}, and a one-bit delta has none; make it with one_bit")


def _with(edit: Any, path: str, found: Mapping[str, np.ndarray], file: Path) -> Any:
    for name, x in _arrays(path, edit).items():
        if name not in found or found[name].shape != x.shape:
            there = found[name].shape if name in found else "not there"
            raise Fault(f"{file}: {name} is {there} instead of {x.shape}; it was made over another base")
    arrays = {name.rpartition(".")[2]: jnp.asarray(x) for name, x in found.items()}
    if isinstance(edit, Dense):
        return edit.replace(dw=arrays["dw"].astype(edit.dw.dtype))  # pyright: ignore[reportAttributeAccessIssue]
    bits = edit.bits.replace(codes=arrays["bits"])
    return edit.replace(bits=bits, scale=arrays["scale"])  # pyright: ignore[reportAttributeAccessIssue]
