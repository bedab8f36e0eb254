# SPDX-License-Identifier: Apache-2.0
"""Views on rows: all of one shape (a row of another is a mistake in the file, not another task), some, or renamed; and
rows that know more than a sequence does, of epochs or of places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxpost.data.rows.fields import renamed
from jaxpost.data.rows.shapes import KNOWN, shape_of
from jaxpost.data.sources.record import Record, files_of
from jaxpost.data.text import place
from jaxpost.faults import Fault


class View(Sequence[Any]):
    """Other rows seen in some way: as many of them, from the same files, under the same name."""

    rows: Sequence[Any]

    @property
    def name(self) -> str:
        return getattr(self.rows, "name", "the data set")

    @property
    def files(self) -> tuple[Path, ...]:
        return files_of(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Uniform(View):
    """The rows, each checked when it is read to be of the shape of the first."""

    rows: Sequence[Any]
    columns: Mapping[str, str] | None = None

    def __getitem__(self, index: int) -> Any:
        row = self.rows[range(len(self))[index]]
        shape, where = self._first
        if (found := shape_of(row, self.columns)) != shape:
            raise Fault(
                f"rows of two shapes in one source: {where} is {shape!r} ({KNOWN[shape]}), {row.where} is {found!r} "
                f"({KNOWN[found]}); keep them in files of their own, and mix those"
            )
        return row

    @cached_property
    def _first(self) -> tuple[str, str]:
        return shape_of(self.rows[0], self.columns), self.rows[0].where


@dataclass(frozen=True)
class Some(View):
    """Those of the rows that have these numbers, in that order."""

    rows: Sequence[Any]
    numbers: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        return self.rows[int(self.numbers[index])]


@dataclass(frozen=True)
class Renamed(View):
    """The rows under our names, for sources with other names that are mixed."""

    rows: Sequence[Any]
    columns: Mapping[str, str]

    def __getitem__(self, index: int) -> Record:
        fields = renamed(self.rows[range(len(self))[index]], self.columns)
        return Record(fields.row, fields.where)


@runtime_checkable
class Changing(Protocol):
    """Rows that are others in every epoch, as a mixture's."""

    def at(self, epoch: int, index: int) -> Any: ...


@runtime_checkable
class Placed(Protocol):
    """Rows made of other rows, which know where those are from."""

    def place_of(self, index: int, epoch: int = 0) -> str: ...


def row_of(rows: Sequence[Any], epoch: int, index: int) -> Any:
    return rows.at(epoch, index) if isinstance(rows, Changing) else rows[index]


def place_of(rows: Sequence[Any], epoch: int, index: int) -> str:
    """Where a row is from, as `file:line` if its source says so."""
    if isinstance(rows, Placed):
        return rows.place_of(index, epoch)
    row = row_of(rows, epoch, index)
    return f"row {index}" if isinstance(row, tuple) else place(row)
