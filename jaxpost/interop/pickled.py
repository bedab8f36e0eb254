# SPDX-License-Identifier: Apache-2.0
"""The tensors of a file that torch.save wrote, without torch and without running anything that the file names.

Such a file is a zip with a pickle of a dict and one stored file for the bytes of each tensor. Unpickling can run any
code; here it may only build dicts and views of those bytes.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxpost.faults import Fault

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
}


def read(file: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            found = _Unpickler(archive, entry.removesuffix("data.pkl")).load()
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, KeyError, EOFError, ValueError) as error:
        raise Fault(
            f"{file}: cannot be read as tensors that torch saved ({error}); save the adapter as safetensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(tensor, np.ndarray) for tensor in found.values()):
        raise Fault(f"{file}: holds other things than tensors by name; save the adapter as safetensors")
    return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(root + "data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module_name: str, global_name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module_name == "torch" and global_name in _STORAGES:
            return _STORAGES[global_name]
        if (module_name, global_name) not in known:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return known[module_name, global_name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, *_ = pid
        return np.frombuffer(self.archive.read(f"{self.root}data/{key}"), dtype)


def _view(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    if offset < 0 or offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
        raise pickle.UnpicklingError("a tensor reaches beyond its bytes")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)
