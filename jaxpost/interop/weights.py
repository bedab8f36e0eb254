# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: many tensors read one at a time, and written without holding them all."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxpost.faults import Fault

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass
class Checkpoint:
    """The weights of a directory, one file or several behind an index. Files are mapped; `read` copies one tensor.

    `shapes` lists every tensor there is, from the files' own headers: an index may be wrong.
    """

    directory: Path
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _open: dict[str, tuple[Path, Any]] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Checkpoint":
        try:
            for file in _files(self.directory):
                self._catalogue(file)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _catalogue(self, file: Path) -> None:
        try:
            handle = self._stack.enter_context(safe_open(file, framework="numpy"))
            for name in handle.keys():
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())
                self._open[name] = file, handle
        except (SafetensorError, OSError) as error:
            raise Fault(f"{file}: not a whole safetensors file ({error}); fetch or save it again") from error

    def read(self, name: str) -> np.ndarray:
        file, handle = self._open[name]
        code = handle.get_slice(name).get_dtype()
        if code not in _CODES.values():
            raise Fault(f"{file}: tensor {name} is of type {code}; only {', '.join(_CODES.values())} are read")
        try:
            return handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise Fault(f"{file}: tensor {name} cannot be read ({error})") from error


def _files(directory: Path) -> list[Path]:
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    index = directory / INDEX
    if not index.is_file():
        other = sorted(path.name for path in directory.glob("*.bin"))
        hint = f"; {other[0]} is in another format, convert it to safetensors" if other else ""
        raise Fault(f"{directory}: no weights, neither {SINGLE} nor {INDEX}{hint}")
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault(f"{index}: no JSON object with a weight_map from tensors to files ({error!r})") from error
    absent = [name for name in files if not (directory / name).is_file()]
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        raise Fault(f"{directory}: {INDEX} names files that are not there: {', '.join(absent[:8])}{more}")
    return [directory / name for name in files]


def write(
    directory: Path,
    tensors: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    data: Iterable[np.ndarray],
    shard_bytes: int,
) -> None:
    """Tensors of one type, by name and shape, as one file or as files of up to `shard_bytes` and their index.

    `data` yields the tensors in the order of their names. Each is written before the next is asked for.
    """
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in tensors.items():
        size += math.prod(shape) * dtype.itemsize
        if size > shard_bytes and shards[-1]:
            shards.append({})
            size = math.prod(shape) * dtype.itemsize
        shards[-1][name] = shape
    arrays = iter(data)
    if len(shards) == 1:
        _write_file(directory / SINGLE, shards[0], dtype, arrays)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / name, shard, dtype, arrays)
        weight_map |= dict.fromkeys(shard, name)
    count = sum(math.prod(shape) for shape in tensors.values())
    metadata = {"total_parameters": count, "total_size": count * dtype.itemsize}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, data: Iterator[np.ndarray]) -> None:
    """The format is a length, a JSON header and the bytes. The library's own writer needs all tensors at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), array in zip(shapes.items(), data, strict=False):
            assert array.shape == shape and array.dtype == dtype, name
            out.write(np.ascontiguousarray(array).view(np.uint8).data)
        out.flush()
        os.fsync(out.fileno())
