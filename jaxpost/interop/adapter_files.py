# SPDX-License-Identifier: Apache-2.0
"""Directories of adapters: a small JSON file beside a few tensors, each tensor asked for by name and shape."""

import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save

from jaxpost.faults import Fault
from jaxpost.interop.config_json import ConfigFields
from jaxpost.interop.listing import faults_in_words
from jaxpost.interop.pickled import read as unpickled
from jaxpost.interop.saving import written_beside

CONFIG = "adapter_config.json"
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def said(directory: Path) -> ConfigFields:
    """What the adapter's JSON file says."""
    file = directory / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Fault(f"{directory}: no {CONFIG} there; an adapter is a directory with one and its tensors") from None
    except (ValueError, OSError) as error:
        raise Fault(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise Fault(f"{file}: must be a JSON object")
    return ConfigFields(file, values)


def warn_of_unknown(fields: ConfigFields, known: Collection[str]) -> None:
    """New versions of a format add fields; what is not known cannot be honoured, and is told of."""
    if unknown := sorted(fields.values.keys() - set(known)):
        warnings.warn(f"{fields.file}: ignored, as it is not known here: {', '.join(unknown)}", stacklevel=4)


@dataclass
class Tensors:
    """The tensors of an adapter. What is asked for and is not there, or in another shape, is noted, and `done` raises
    with all of it, and with what nobody asked for."""

    file: Path
    there: dict[str, np.ndarray]
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def __contains__(self, name: str) -> bool:
        return name in self.there

    def take(self, name: str, *shape: int) -> np.ndarray:
        """The tensor, in float32; zeros where it is at fault."""
        found = self.there.pop(name, None)
        if found is None:
            self.missing.append(name)
        elif found.shape != shape:
            self.misshapen.append(f"{name} {list(found.shape)} instead of {list(shape)}")
        else:
            return found.astype(np.float32)
        return np.zeros(shape, np.float32)

    def done(self) -> None:
        faults = {
            "missing": self.missing,
            "of another shape than this base needs": self.misshapen,
            "not known here": sorted(self.there),
        }
        if wrong := faults_in_words(faults):
            raise Fault(f"{self.file}: the adapter does not fit this base and its {CONFIG}: {wrong}")


def tensors(directory: Path, *names: str) -> Tensors:
    """Those of the first file of these names that the directory has."""
    file = next((directory / name for name in names if (directory / name).is_file()), None)
    if file is None:
        raise Fault(f"{directory}: no weights of an adapter there, neither {' nor '.join(names)}")
    if file.suffix == ".bin":
        return Tensors(file, unpickled(file))
    try:
        parts = safetensors.deserialize(file.read_bytes())
        there = {
            name: np.frombuffer(part["data"], _TYPES[part["dtype"]]).reshape(part["shape"]) for name, part in parts
        }
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise Fault(f"{file}: not a whole safetensors file of numbers ({error}); fetch or save it again") from error
    return Tensors(file, there)


def write(directory: Path, name: str, values: Mapping[str, object], found: Mapping[str, np.ndarray]) -> None:
    """Both files in the directory's place, the same bytes for the same adapter."""
    if directory.exists() and not ((directory / CONFIG).is_file() or _is_empty(directory)):
        raise Fault(
            f"{directory}: exists and holds no adapter; write into a new or empty directory, or over an adapter"
        )
    text = json.dumps(dict(sorted(values.items())), indent=2) + "\n"
    stored = {key: np.ascontiguousarray(found[key]) for key in sorted(found)}

    def to(partial: Path) -> None:
        (partial / CONFIG).write_text(text, encoding="utf-8")
        (partial / name).write_bytes(save(stored, metadata={"format": "pt"}))

    written_beside(directory, to)


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())
