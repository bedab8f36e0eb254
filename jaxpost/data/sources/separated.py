# SPDX-License-Identifier: Apache-2.0
"""Tables as text: CSV, and TSV with tabs in place of commas. Every value is a string."""

import csv
import io
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost.data.sources.mapped import Mapped
from jaxpost.data.sources.record import Record, Rows, check_file
from jaxpost.data.sources.stored import note
from jaxpost.faults import Fault

DELIMITERS = {".csv": ",", ".tsv": "\t"}
EVERY = 1 << 14  # lines between two words about progress


class CsvRows(Rows):
    """The rows of a file whose first line names the fields, read where they lie: memory holds two integers a row.

    All of it is looked through when it is opened, since a quoted value may run over several lines: what is broken
    raises then, with the line on which its row begins.
    """

    def __init__(self, path: str | Path, name: str = "", delimiter: str = ","):
        path = Path(path)
        check_file(path)
        self.name, self.files, self._delimiter, self._bytes = name or str(path), (path,), delimiter, Mapped(path)
        starts, numbers = array("q"), array("q")
        self._names: list[str] = []
        for fields, start, number in self._read(path):
            if not self._names:
                self._names = self._header(fields)
                continue
            self._check(fields, number)
            starts.append(start)
            numbers.append(number)
        if not starts:
            raise Fault(f"{self.name} has a header but no rows")
        starts.append(path.stat().st_size)
        self._starts, self._numbers = np.array(starts), np.array(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def row(self, index: int) -> Record:
        text = self._bytes[self._starts[index] : self._starts[index + 1]].decode()
        with _long_values(len(text)):
            lines = io.StringIO(text, newline="\n")  # the only line end: a value may hold others
            fields = next(csv.reader(lines, strict=True, delimiter=self._delimiter))
        return Record(dict(zip(self._names, fields, strict=True)), f"{self.name}:{self._numbers[index]}")

    def _read(self, path: Path) -> Iterator[tuple[list[str], int, int]]:
        """Every row that is not blank, with its first byte and its first line."""
        at, last, line, size = 0, 0, 0, path.stat().st_size
        start, number = 0, 1  # of the row being read

        def lines(file: Any) -> Iterator[str]:
            nonlocal at, last, line
            for raw in file:
                text = raw.decode("utf-8-sig" if line == 0 else "utf-8")
                last, at, line = at, at + len(raw), line + 1
                if line % EVERY == 0:
                    note(f"finding the rows of {self.name}", at, size)
                yield text

        with open(path, "rb") as file, _long_values(size):
            try:
                for fields in csv.reader(lines(file), strict=True, delimiter=self._delimiter):
                    if fields:
                        yield fields, start, number
                    start, number = at, line + 1
            except csv.Error as error:
                raise Fault(
                    f"{self.name}:{number}: not {'CSV' if self._delimiter == ',' else 'TSV'}, {error}"
                ) from None
            except UnicodeDecodeError as error:
                raise Fault(f"{self.name}:{line + 1}: not UTF-8 (byte {error.start + 1} of the line)") from None

    def _header(self, names: Sequence[str]) -> list[str]:
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise Fault(f"{self.name}:1: the header has the name {twice[0]!r} twice")
        return list(names)

    def _check(self, fields: Sequence[str], number: int) -> None:
        if len(fields) > len(self._names):
            raise Fault(f"{self.name}:{number}: more values than the header has names ({len(self._names)})")
        if len(fields) < len(self._names):
            raise Fault(f"{self.name}:{number}: no value for the field {self._names[len(fields)]!r}")


@contextmanager
def _long_values(size: int) -> Iterator[None]:
    """The reader's limit on a value's length, 128 KiB for all of the process, lifted to what there may be."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, size))
    try:
        yield
    finally:
        csv.field_size_limit(before)
