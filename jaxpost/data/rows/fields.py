# SPDX-License-Identifier: Apache-2.0
"""The fields of one row, under our names, each read as what it must be or refused with its place."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxpost.faults import Fault, nearest

TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def renamed(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> "Fields":
    """The row's fields with those in `columns` (the file's names to ours) renamed; a dotted name reaches inside."""
    where = getattr(row, "where", "a row")
    if not columns:
        return Fields(row, where)
    if not any(name in row or name.split(".")[0] in row for name in columns):
        raise Fault(
            f"{where}: no field {next(iter(columns))!r} to be used as {next(iter(columns.values()))!r}, nor any other "
            f"that columns maps (the row has: {', '.join(map(str, row)) or 'nothing'}); map its own "
            "(--data.columns NAME prompt OTHER completion), or use its names as they are (--data.columns None)"
        )
    fields = {name: value for name, value in row.items() if name not in columns}
    for theirs, ours in columns.items():
        fields[ours] = _reach(row, theirs, ours, where)
    return Fields(fields, where, {ours: theirs for theirs, ours in columns.items()})


def _reach(row: Mapping[str, Any], name: str, ours: str, where: str) -> Any:
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = value if isinstance(value, Mapping) else ()
            raise Fault(f"{where}: no field {name!r} to be used as {ours!r}; {nearest(part, map(str, known))}")
        value = value[part]
    return value


@dataclass(frozen=True)
class Fields:
    """A row under our names; `their_names` are the ones that its file has for some of them."""

    row: Mapping[str, Any]
    where: str
    their_names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def present(self) -> tuple[str, ...]:
        """The names of fields that hold something: files with columns write null for what a row lacks."""
        return tuple(str(name) for name, value in self.row.items() if value is not None)

    def theirs(self, name: str) -> str:
        return self.their_names.get(name, name)

    def place(self, name: str) -> str:
        return f"{self.where}: the field {self.theirs(name)!r}"

    def filled(self, name: str) -> bool:
        return name in self.present and self.row[name] != ""

    def need(self, name: str) -> Any:
        if name not in self.row:
            raise Fault(f"{self.where}: the field {name!r} is missing; {nearest(name, map(str, self.row))}")
        return self.row[name]

    def string(self, name: str) -> str:
        return checked_string(self.need(name), self.place(name))

    def number(self, name: str) -> float:
        return _number(self.need(name), self.place(name))

    def numbers(self, name: str, count: int) -> list[float | None]:
        """As many numbers as there are answers, null among them."""
        values = self.structure(name)
        if values is None:
            raise Fault(f"{self.where}: the answers need 'scores', 'ranks' of which 1 is the best, or 'votes'")
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
            raise Fault(f"{self.place(name)} must be a list of {count} numbers, one an answer, not {kind_of(values)}")
        return [None if value is None else _number(value, f"{self.place(name)}[{i}]") for i, value in enumerate(values)]

    def truth(self, name: str) -> bool:
        value = self.need(name)
        known = TRUTHS.get(str(value).strip().lower()) if isinstance(value, (bool, int, str)) else None
        if known is None:
            raise Fault(
                f"{self.place(name)} must be true or false (is this answer a good one?), not {kind_of(value)}; if it "
                "means something else, map it to another name (columns)"
            )
        return known

    def structure(self, name: str) -> Any:
        """A list or an object, which files of plain columns hold as JSON in a string; None where there is none."""
        value = self.row.get(name)
        if not isinstance(value, str):
            return value
        if not value.strip():
            return None
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise Fault(
                f"{self.place(name)} must be a list, or JSON of one: {error.msg} at character {error.pos + 1}"
            ) from None


def checked_string(value: Any, place: str) -> str:
    """The value, which must be text that can be encoded."""
    if not isinstance(value, str):
        raise Fault(f"{place} must be a string, not {kind_of(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Fault(f"{place} holds half a surrogate pair at character {error.start}, which is no text") from None
    return value


def kind_of(value: Any) -> str:
    """A value in words, for messages."""
    return "null" if value is None else f"{type(value).__name__} ({str(value)[:40]!r})"


def _number(value: Any, place: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Fault(f"{place} must be a finite number, not {kind_of(value)}")
    return number
