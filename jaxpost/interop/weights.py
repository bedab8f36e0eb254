# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: slices of tensors read one at a time, and many tensors written without holding them all.

The format is a length, a JSON header and the bytes. Read by position and not by mapping them, files cost no memory
beyond what is asked for, however often they are read.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxpost.faults import Fault

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
_CODES = {np.dtype(dtype).name: code for code, dtype in _TYPES.items()}
_HEADER_LIMIT = 100_000_000  # that of the format's own library


@dataclass(frozen=True)
class Tensor:
    """One tensor of one file. `code` is the format's name of its type."""

    name: str
    file: Path
    descriptor: int
    code: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def dtype(self) -> np.dtype:
        if self.code not in _TYPES:
            raise Fault(f"{self.file}: tensor {self.name} is of type {self.code}; only {', '.join(_TYPES)} are read")
        return np.dtype(_TYPES[self.code])

    @property
    def columns(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    def rows(self, begin: int, end: int, left: int = 0, right: int | None = None) -> np.ndarray:
        """Rows `[begin, end)` and columns `[left, right)` of the tensor with all axes but the last made one. A narrow
        range of columns is read row by row, so that a process that holds a few reads little more than those."""
        columns, size = self.columns, self.dtype.itemsize
        right = columns if right is None else right
        if 2 * (right - left) > columns:
            whole = np.empty((end - begin, columns), self.dtype)
            self._read(whole, self.offset + begin * columns * size)
            return whole[:, left:right]
        found = np.empty((end - begin, right - left), self.dtype)
        for row in range(begin, end):
            self._read(found[row - begin], self.offset + (row * columns + left) * size)
        return found

    def raw(self, dtype: Any) -> np.ndarray:
        """All of the tensor's bytes as numbers of that type, in one axis, whatever the header says of them."""
        found = np.empty(self.bytes // np.dtype(dtype).itemsize, dtype)
        self._read(found, self.offset)
        return found

    def _read(self, into: np.ndarray, offset: int) -> None:
        view = into.view(np.uint8).reshape(-1).data
        while len(view):
            try:
                count = os.preadv(self.descriptor, [view], offset)
            except OSError as error:
                raise Fault(f"{self.file}: tensor {self.name} cannot be read ({error.strerror})") from error
            if not count:
                raise Fault(f"{self.file}: tensor {self.name} cannot be read (the file was cut off meanwhile)")
            view, offset = view[count:], offset + count


@dataclass
class Checkpoint:
    """The weights of a directory, one file or several behind an index, open for reading.

    `tensors` lists every tensor there is, from the files' own headers: an index may be wrong.
    """

    directory: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Checkpoint":
        try:
            promised = _files(self.directory)
            for file in sorted(set(promised.values())):
                self._catalogue(file)
            for name, file in promised.items():
                if name and (name not in self.tensors or self.tensors[name].file != file):
                    raise Fault(f"{self.directory}: {INDEX} says that tensor {name} is in {file.name}; it is not there")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _catalogue(self, file: Path) -> None:
        try:
            descriptor = os.open(file, os.O_RDONLY)
            self._stack.callback(os.close, descriptor)
            for name, found in _header(descriptor).items():
                self.tensors[name] = Tensor(name, file, descriptor, *found)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise Fault(f"{file}: not a whole safetensors file ({error}); fetch or save it again") from error


def _header(descriptor: int) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Type, shape, place and bytes of each tensor of a file. Raises `ValueError` if they do not fill it exactly."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or length > min(size - 8, _HEADER_LIMIT):
        raise ValueError("its header is cut off")
    start, end, found = 8 + length, 0, {}
    entries = json.loads(os.pread(descriptor, length, 8))
    entries.pop("__metadata__", None)
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        shape, code = tuple(map(int, entry["shape"])), str(entry["dtype"])
        wanted = math.prod(shape) * np.dtype(_TYPES[code]).itemsize if code in _TYPES else stop - begin
        if begin != end or stop - begin != wanted:
            raise ValueError(f"its header puts tensor {name} at bytes {begin} to {stop}")
        end = stop
        found[name] = code, shape, start + begin, stop - begin
    if size != start + end:
        raise ValueError(f"it has {size} bytes, and its header says {start + end}")
    return found


def _files(directory: Path) -> dict[str, Path]:
    """In which file each tensor is said to be; a single file says nothing."""
    if (directory / SINGLE).is_file():
        return {"": directory / SINGLE}
    if not (directory / INDEX).is_file():
        other = sorted(path.name for pattern in ("*.bin", "*.pth", "*.gguf") for path in directory.glob(pattern))
        hint = f"; {other[0]} is in another format, convert it to safetensors" if other else ""
        raise Fault(f"{directory}: no weights, neither {SINGLE} nor {INDEX}{hint}")
    promised = promises(directory)
    absent = sorted({name for name in promised.values() if not (directory / name).is_file()})
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        raise Fault(f"{directory}: {INDEX} names files that are not there: {', '.join(absent[:8])}{more}")
    return {name: directory / file for name, file in promised.items()}


def promises(directory: Path) -> dict[str, str]:
    """In which file each tensor is, as the directory's index says; nothing without an index."""
    index = directory / INDEX
    try:
        text = index.read_text("utf-8") if index.is_file() else '{"weight_map": {}}'
        return {str(name): str(file) for name, file in json.loads(text)["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault(f"{index}: no JSON object with a weight_map from tensors to files ({error!r})") from error


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
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / name, shard, dtype, arrays)
        weight_map |= dict.fromkeys(shard, name)
    assert next(arrays, None) is None, "more tensors than names"
    if len(shards) == 1:
        return
    count = sum(math.prod(shape) for shape in tensors.values())
    metadata = {"total_parameters": count, "total_size": count * dtype.itemsize}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, data: Iterator[np.ndarray]) -> None:
    """The library's own writer needs all tensors at once."""
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
