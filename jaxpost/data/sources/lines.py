# SPDX-License-Identifier: Apache-2.0
"""Files with a row on every line: JSON Lines, and plain text with a document on every line."""

import codecs
import json
from abc import abstractmethod
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost.data.sources.mapped import Mapped
from jaxpost.data.sources.record import Record, Rows, check_file
from jaxpost.data.sources.stored import note
from jaxpost.faults import Fault

CHUNK = 4 << 20  # bytes looked at at a time while lines are found: what stays in a core's cache
LONG = 1 << 20  # bytes from which a broken line's length is worth a word


class Lines(Rows):
    """The lines of a file that are not blank, read where they lie: memory holds two integers a row.

    `name` is what messages call the file, if not by its path. A line that is broken raises when it is read, not before.
    """

    def __init__(self, path: str | Path, name: str = ""):
        path = Path(path)
        check_file(path)
        self.name, self.files, self._bytes = name or str(path), (path,), Mapped(path)
        self._wide = self._bytes[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        self._starts, self._numbers = found_lines(path, self.name)
        if len(self._numbers) == 0:
            raise Fault(f"{self.name} holds blank lines only")

    def __len__(self) -> int:
        return len(self._numbers)

    def row(self, index: int) -> Record:
        where = f"{self.name}:{self._numbers[index]}"
        if self._wide:  # of whose lines some would decode all the same
            raise Fault(f"{where}: not UTF-8 (byte 1 of the file): it is UTF-16, by its mark; save it as UTF-8")
        line = self._bytes[self._starts[index] : self._starts[index + 1]].partition(b"\n")[0]  # blank ones may follow
        try:
            # A byte order mark may open a file; JSON's own guess at other encodings would read garbage as text.
            text = line.decode("utf-8" if index else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise Fault(f"{where}: not UTF-8 (byte {error.start + 1} of the line)") from None
        return Record(self.parsed(text, where), where)

    @abstractmethod
    def parsed(self, line: str, where: str) -> dict[str, Any]:
        """The fields that a line says."""


class JsonLines(Lines):
    """A JSONL file, one object a line."""

    def parsed(self, line: str, where: str) -> dict[str, Any]:
        size = f" (the line has {len(line) / 1e6:.1f} million characters)" if len(line) > LONG else ""
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            whole = "; if the file is one JSON document, call it .json" if line.strip() in ("{", "[") else ""
            raise Fault(f"{where}: not JSON, {error.msg} at column {error.colno}{size}{whole}") from None
        except RecursionError:
            raise Fault(f"{where}: JSON that is nested too deeply to be read{size}") from None
        if not isinstance(fields, dict):
            raise Fault(f"{where}: a row must be an object with fields, not {type(fields).__name__}{size}")
        return fields


class TextLines(Lines):
    """A text file, one document a line: its rows have the one field `text`. Blank lines are no documents."""

    def parsed(self, line: str, where: str) -> dict[str, Any]:
        return {"text": line.rstrip("\r\n")}


def found_lines(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Where every line that is not blank begins, and the end of the file behind them; and which line each is, from 1.

    The file is looked through in chunks, so that neither memory nor the page cache's share of it grows with its size.
    """
    starts, numbers = array("q", [0]), array("q", [1])
    size, at, line = path.stat().st_size, 0, 1
    buffer = bytearray(CHUNK)
    doubtful: list[int] = []  # lines (their place in `starts`) that begin with white space: perhaps they are blank
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            chunk = np.frombuffer(buffer, np.uint8, count)
            # The first byte of a chunk begins a line if the byte before it, in the last chunk, ended one.
            first = len(starts) - 1 if starts[-1] == at else len(starts)
            begins = np.flatnonzero(chunk == 10) + (at + 1)
            starts.frombytes(begins.astype(np.int64).tobytes())
            numbers.frombytes(np.arange(line + 1, line + 1 + len(begins), dtype=np.int64).tobytes())
            inside = np.frombuffer(starts, np.int64)[first:]
            inside = inside[: np.searchsorted(inside, at + count)] - at
            doubtful += (first + np.flatnonzero(chunk[inside] <= 32)).tolist()
            del inside  # or the array could not grow
            line, at = line + len(begins), at + count
            note(f"finding the lines of {name}", at, size)
    if starts[-1] != at:
        starts.append(at)
    else:
        numbers.pop()
    return _without_blank(path, np.frombuffer(starts, np.int64), np.frombuffer(numbers, np.int64), doubtful)


def _without_blank(
    path: Path, starts: np.ndarray, numbers: np.ndarray, doubtful: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    blank = []
    with open(path, "rb") as file:
        for i in doubtful:
            file.seek(int(starts[i]))
            if file.read(int(starts[i + 1] - starts[i])).isspace():
                blank.append(i)
    return (np.delete(starts, blank), np.delete(numbers, blank)) if blank else (starts, numbers)
