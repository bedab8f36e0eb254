# SPDX-License-Identifier: Apache-2.0
"""Rows of a source by index, each knowing where it is from."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from jaxpost.faults import Fault, nearest


class Record(dict[str, Any]):
    """A row of a file. `where` is `file:line`, or `file: row n` where a file has no lines, for messages."""

    def __init__(self, fields: Mapping[str, Any], where: str):
        super().__init__(fields)
        self.where = where


class Span(NamedTuple):
    """The rows from `start` to before `stop` of a file, or of a part of it; `name` is what messages call the file."""

    name: str
    file: Path
    part: str
    start: int
    stop: int


class Rows(Sequence[Record]):
    """Random access to the rows of one source. `name` is what its user called it, `files` are what it is read from,
    and `part` is what of its file is read where a file has several lists of rows."""

    name: str
    files: tuple[Path, ...]
    part: str = ""

    @abstractmethod
    def row(self, index: int) -> Record:
        """The row at an index from 0 to below the length."""

    def __getitem__(self, index: int) -> Record:
        return self.row(range(len(self))[index])

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Where the rows from `start` to before `stop` lie."""
        yield Span(self.name, self.files[0].resolve(), self.part, start, stop)


class Joined(Rows):
    """Several sources as one, one after the other."""

    def __init__(self, parts: Sequence[Rows], name: str):
        self.name, self.files = name, tuple(file for part in parts for file in part.files)
        self._parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Record:
        part = bisect_right(self._ends, index)
        return self._parts[part].row(index - (self._ends[part - 1] if part else 0))

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        for part, end in zip(self._parts, self._ends, strict=True):
            begin = end - len(part)
            if max(start, begin) < min(stop, end):
                yield from part.spans(max(start, begin) - begin, min(stop, end) - begin)


class Cut(Rows):
    """The rows of a source from `start` to before `stop`."""

    def __init__(self, rows: Rows, start: int, stop: int):
        self.name, self.files = rows.name, rows.files
        self._rows, self._start, self._count = rows, start, stop - start

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Record:
        return self._rows.row(self._start + index)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        return self._rows.spans(self._start + start, self._start + stop)


def common(one: Iterable[Span], other: Iterable[Span]) -> str:
    """The name of a file of which both have a row, or nothing."""
    lying: dict[tuple[Path, str], list[Span]] = {}
    for span in one:
        lying.setdefault((span.file, span.part), []).append(span)
    for span in other:
        for each in lying.get((span.file, span.part), ()):
            if each.start < span.stop and span.start < each.stop:
                return span.name
    return ""


def files_of(rows: Sequence[Any]) -> tuple[Path, ...]:
    """What rows are read from, be they a source or a view on one; nothing where they are made in memory."""
    return tuple(getattr(rows, "files", ()))


def check_file(path: Path) -> None:
    """Raises unless there is something to read."""
    if not path.is_file():
        if path.is_dir():
            raise Fault(f"no file {path}: it is a directory")
        raise Fault(f"no file {path}{_beside(path)}")
    if path.stat().st_size == 0:
        raise Fault(f"{path} is empty")


def _beside(path: Path) -> str:
    """What lies where a missing file was looked for."""
    if not path.parent.is_dir():
        return f": there is no directory {path.parent} either"
    return f"; {nearest(path.name, (each.name for each in path.parent.iterdir()))}"
