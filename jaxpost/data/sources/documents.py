# SPDX-License-Identifier: Apache-2.0
"""JSON files that are one document: a list of rows, or columns, held in memory as a whole."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpost.data.sources.record import Record, Rows, check_file
from jaxpost.data.sources.splits import chosen_key, split_in
from jaxpost.faults import Fault

WITHIN = ("data", "rows", "examples")  # under which key rows may stand in an object, besides a split's name


class JsonRows(Rows):
    """The rows of a JSON document: a list of objects; an object with such a list under `data`, `rows`, `examples` or
    the names of splits (then `part` is the one that is read); or an object of columns, lists of one length."""

    def __init__(self, path: str | Path, name: str = "", split: str = "", otherwise: Sequence[str] = ("train",)):
        path = Path(path)
        check_file(path)
        self.name, self.files = name or str(path), (path,)
        try:
            whole = json.loads(path.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise Fault(f"{self.name}: not UTF-8 (byte {error.start + 1})") from None
        except json.JSONDecodeError as error:
            lines = "; if it is one object a line, call it .jsonl" if error.msg == "Extra data" else ""
            raise Fault(f"{self.name}:{error.lineno}: not JSON, {error.msg} at column {error.colno}{lines}") from None
        except RecursionError:
            raise Fault(f"{self.name}: JSON that is nested too deeply to be read") from None
        self._rows, self.part = self._found(whole, split, otherwise)
        if not self._rows:
            raise Fault(f"{self.name} holds no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Record:
        where, fields = f"{self.name}: row {index + 1}", self._rows[index]
        if not isinstance(fields, dict):
            raise Fault(f"{where}: a row must be an object with fields, not {type(fields).__name__}")
        return Record(fields, where)

    def _found(self, whole: Any, split: str, otherwise: Sequence[str]) -> tuple[Sequence[Any], str]:
        """The rows, and the split that they are of where the document has splits."""
        if isinstance(whole, list):
            return whole, ""
        if isinstance(whole, dict):
            lists = {key: value for key, value in whole.items() if isinstance(value, list)}
            rows = {key: value for key, value in lists.items() if all(isinstance(row, dict) for row in value)}
            table = len(lists) == len(whole) and len({len(value) for value in lists.values()}) == 1
            if len(rows) == len(lists) or not table:  # else a column's name may happen to be a split's
                if named := [key for key in rows if key == split or split_in(key)]:
                    key = chosen_key(split, otherwise, named, self.name)
                    return rows[key], key
                if key := next((key for key in WITHIN if key in rows), ""):
                    return rows[key], ""
            if lists and len(lists) == len(whole):
                return _across(lists, self.name), ""
        raise Fault(
            f"{self.name}: rows are a list of objects, such a list under {', '.join(map(repr, WITHIN))} or a split's "
            f"name, or lists of one length by field; this is {_what(whole)}"
        )


def _across(columns: Mapping[str, Sequence[Any]], name: str) -> list[dict[str, Any]]:
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        each = ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
        raise Fault(f"{name}: columns must be of one length, and {each}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _what(whole: Any) -> str:
    if isinstance(whole, dict):
        return f"an object with {', '.join(map(repr, list(whole)[:8])) or 'nothing'}"
    return f"{type(whole).__name__}"
