# SPDX-License-Identifier: Apache-2.0
"""Data sets that TensorFlow Datasets prepared, read from their directory without TensorFlow."""

import importlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost.data.sources.mapped import OPEN
from jaxpost.data.sources.record import Record, Rows, Span
from jaxpost.data.sources.tfrecord import TfRecords
from jaxpost.faults import Fault, nearest

INFO = ("dataset_info.json", "features.json")  # what a prepared data set's directory holds beside its records


class TfdsRows(Rows):
    """The rows of a split, or of a part of one in TFDS's words: `train`, `train[:90%]`, `train[100:]+test`.

    Features are decoded as the data set declares them; text is text, and lists of objects are lists of objects.
    """

    def __init__(self, directory: str | Path, split: str = "train"):
        self.name, self._directory, self._split = f"{directory} ({split})", Path(directory), split
        info = _builder(Path(directory)).info
        kind = info.file_format.value if info.file_format else "unknown"
        if kind not in READERS:
            raise Fault(
                f"{directory} is prepared as {kind}, which cannot be read here; prepare it as {' or '.join(READERS)} "
                "(tfds build --file_format=array_record, or tfds convert_format)"
            )
        self._features = info.features
        shards = [shard for shard in _shards(info, split, directory) if shard.take]
        self.files = tuple(Path(os.fspath(shard.filename)) for shard in shards)
        for path in self.files:
            if not path.is_file():
                raise Fault(f"{directory} lacks {path.name}, a part of its split {split!r}; copy or prepare it again")
        self._records = [READERS[kind](path) for path in self.files]
        self._skips = [shard.skip for shard in shards]
        self._ends = list(accumulate(shard.take for shard in shards))
        for path, records, shard in zip(self.files, self._records, shards, strict=True):
            if len(records) != shard.examples_in_shard:
                raise Fault(
                    f"{path} has {len(records)} records, and {shard.examples_in_shard} by {directory}/{INFO[0]}; copy "
                    "or prepare it again"
                )
        if not self._ends:
            raise Fault(f"{directory} has no rows in {split!r}")

    def __reduce__(self) -> Any:
        return TfdsRows, (self._directory, self._split)

    def __len__(self) -> int:
        return self._ends[-1]

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        begin = 0
        for path, skip, end in zip(self.files, self._skips, self._ends, strict=True):
            first, last = max(start, begin), min(stop, end)
            if first < last:
                yield Span(str(path), path.resolve(), "", skip + first - begin, skip + last - begin)
            begin = end

    def row(self, index: int) -> Record:
        shard = bisect_right(self._ends, index)
        at = self._skips[shard] + index - (self._ends[shard - 1] if shard else 0)
        where = f"{self.files[shard]}: row {at + 1}"
        record = self._records[shard][at]
        try:
            fields = self._features.deserialize_example_np(record)
        except Exception as error:  # whatever its parser meets in bytes that are something else
            raise Fault(f"{where}: not as {INFO[1]} declares it: {type(error).__name__}: {error}") from error
        return Record(fields if not isinstance(fields, Mapping) else _plain(fields, where), where)


class ArrayRecords:
    """The records of an array_record file."""

    def __init__(self, path: Path):
        self._path, self._count = path, _opened(path, os.getpid()).num_records()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        return _opened(self._path, os.getpid()).read([index])[0]


# Fewer than maps, beside which they are open; by process as well: a reader's threads do not survive a fork.
@lru_cache(OPEN // 2)
def _opened(path: Path, process: int) -> Any:
    module = importlib.import_module("array_record.python.array_record_module")
    try:
        # Rows are read in a random order: the chunk around a record, and nothing ahead of it.
        return module.ArrayRecordReader(str(path), options="readahead_buffer_size:0")
    except Exception as error:
        raise Fault(f"{path} is damaged, or no array_record file: {error}") from None


READERS = {"array_record": ArrayRecords, "tfrecord": TfRecords}


def is_prepared(directory: Path) -> bool:
    return all((directory / name).is_file() for name in INFO)


def find(data_dir: str | Path, name: str) -> Path:
    """The directory of `name[/config][:version]` below a data_dir; of several versions, the newest."""
    path, _, version = name.partition(":")
    directory = Path(data_dir).expanduser()
    for part in (*path.split("/"), *([version] if version else [])):
        if not (directory / part).is_dir():
            there = sorted(each.name for each in directory.iterdir() if each.is_dir()) if directory.is_dir() else []
            raise Fault(
                f"no data set {name!r} in {data_dir}: {directory} has no directory {part!r}; {nearest(part, there)}"
            )
        directory /= part
    while not is_prepared(directory):
        inside = {each.name: each for each in directory.iterdir() if each.is_dir()}
        newest = max(inside, key=_version, default="")
        if _version(newest) or len(inside) == 1:
            directory = inside[newest]
        else:
            configs = sorted(inside)
            raise Fault(
                f"{directory} is no prepared data set (it has no {' or '.join(INFO)}); "
                + (f"name one of its configs: {', '.join(configs)}" if configs else "prepare it with TFDS")
            )
    return directory


def splits(directory: Path) -> list[str]:
    return list(_builder(directory).info.splits)


def _version(name: str) -> tuple[int, ...]:
    parts = name.split(".")
    return tuple(map(int, parts)) if len(parts) == 3 and all(part.isdigit() for part in parts) else ()


def _builder(directory: Path) -> Any:
    import tensorflow_datasets  # here, because it takes a third of a second

    if not is_prepared(directory):
        raise Fault(f"{directory} is no prepared TFDS data set: it has no {' or no '.join(INFO)}")
    try:
        return tensorflow_datasets.builder_from_directory(directory)
    except Exception as error:  # a damaged description, a feature of a package that is not there
        raise Fault(f"{directory} cannot be read as a TFDS data set: {type(error).__name__}: {error}") from error


def _shards(info: Any, split: str, directory: str | Path) -> list[Any]:
    """The files of a split, each with the records to skip and to take."""
    try:
        return info.splits[split].file_instructions
    except Exception as error:  # it raises ValueError, KeyError and AssertionError for what it does not understand
        raise Fault(
            f"{directory} has no split {split!r}: {nearest(split.partition('[')[0], info.splits)} A part of one is "
            "written train[:90%] or train[100:200]"
        ) from error


def _plain(value: Any, where: str) -> Any:
    """Decoded features as Python has them: bytes that are text as text, arrays of one axis as lists."""
    if isinstance(value, Mapping):
        return {name: _plain(part, where) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return value if value.ndim > 1 else [_plain(part, where) for part in value]
    if isinstance(value, list | tuple):
        return [_plain(part, where) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item(), where) if isinstance(value, np.bytes_) else value.item()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise Fault(f"{where}: not UTF-8 (byte {error.start + 1} of a value)") from None
    return value
