# SPDX-License-Identifier: Apache-2.0
"""Files as random-access rows that know where they are from."""

import csv as csv_module
import json
import mmap
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpost.faults import Fault


class Record(dict[str, Any]):
    """A row of a file. `where` is `file:line`, for messages."""

    def __init__(self, fields: Mapping[str, Any], where: str):
        super().__init__(fields)
        self.where = where


class JsonLines(Sequence[Record]):
    """A JSONL file, one object a line, read row by row where it lies: memory holds two integers a row.

    Blank lines are skipped. A line that is broken raises when it is read, not before.
    """

    def __init__(self, path: str | Path):
        self.name = str(path)
        self._starts, self._lines = array("q"), array("q")
        _check(path)
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 0
        for number, line in enumerate(iter(self._bytes.readline, b""), start=1):
            if not line.isspace():
                self._starts.append(start)
                self._lines.append(number)
            start += len(line)
        if not self._starts:
            raise Fault(f"{path} holds blank lines only")
        self._starts.append(start)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        where = f"{self.name}:{self._lines[index]}"
        line = self._bytes[self._starts[index] : self._starts[index + 1]]
        try:
            fields = json.loads(line)
        except UnicodeDecodeError as error:
            raise Fault(f"{where}: not UTF-8 (byte {error.start + 1} of the line)") from None
        except json.JSONDecodeError as error:
            raise Fault(f"{where}: not JSON, {error.msg} at column {error.colno}") from None
        if not isinstance(fields, dict):
            raise Fault(f"{where}: a row must be an object with fields, not {type(fields).__name__}")
        return Record(fields, where)


def jsonl(path: str | Path) -> JsonLines:
    """The rows of a JSON Lines file."""
    return JsonLines(path)


def csv(path: str | Path) -> list[Record]:
    """The rows of a CSV file whose first line names the fields, read into memory. Every value is a string."""
    _check(path)
    rows: list[Record] = []
    line = 1  # where the row being read starts: a quoted value may run over several lines
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv_module.DictReader(file, strict=True)
            names = reader.fieldnames or []
            line = reader.line_num + 1
            for fields in reader:
                where = f"{path}:{line}"
                if None in fields:
                    raise Fault(f"{where}: more values than the header has names ({len(names)})")
                if None in fields.values():
                    short = next(name for name, value in fields.items() if value is None)
                    raise Fault(f"{where}: no value for the field {short!r}")
                rows.append(Record(fields, where))
                line = reader.line_num + 1
    except csv_module.Error as error:
        raise Fault(f"{path}:{line}: not CSV, {error}") from None
    except UnicodeDecodeError as error:
        raise Fault(f"{path}: not UTF-8, {error.reason} in or after line {line}") from None
    if not rows:
        raise Fault(f"{path} has a header but no rows")
    return rows


def _check(path: str | Path) -> None:
    path = Path(path)
    if not path.is_file():
        raise Fault(f"no file {path}" + (": it is a directory" if path.is_dir() else ""))
    if path.stat().st_size == 0:
        raise Fault(f"{path} is empty")
