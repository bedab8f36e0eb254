# SPDX-License-Identifier: Apache-2.0
"""Principles: what answers are criticised, revised and judged by."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxpost.data.principles.files import located, text_of
from jaxpost.data.sources.lines import JsonLines
from jaxpost.data.sources.record import Record
from jaxpost.faults import Fault, nearest

Use = Literal["critique", "revision", "judge"]
USES: tuple[Use, ...] = ("critique", "revision", "judge")
FIELDS = ("name", "principle", *USES)
LABEL = re.compile(r"([A-Za-z]+): (.*)")


@dataclass(frozen=True)
class Principle:
    """One principle, as what a model is asked for by it: a critique, a revision, and which of two answers is better."""

    name: str
    critique: str = ""
    revision: str = ""
    judge: str = ""


def read(name: str, uses: Sequence[Use]) -> tuple[Principle, ...]:
    """The principles of a file (or built-in set), each of which must serve all of these uses.

    In a text file every paragraph is one, and lines that begin with `#` are remarks. A paragraph has lines that begin
    with `critique:`, `revision:`, `judge:` and maybe `name:`; one without these is a principle by itself, which stands
    wherever one of the three is asked for. In a file `.jsonl` every line is one, an object with those fields, or with
    `principle` for one by itself.
    """
    path = located(name, "principles")
    told = _objects(path) if path.suffix == ".jsonl" else _paragraphs(text_of(path, "principles"), str(path))
    found: list[Principle] = []
    for row in told:
        made = _one(row, row.where, len(found) + 1)
        if lacking := [use for use in uses if not getattr(made, use)]:
            raise Fault(
                f"{row.where}: the principle {made.name!r} says nothing for the {lacking[0]}; add a line "
                f"'{lacking[0]}: ...' to it"
            )
        found.append(made)
    if not found:
        raise Fault(f"{path} holds remarks only, and no principle")
    return tuple(found)


def ordered(principles: Sequence[Principle], seed: int, number: int) -> list[Principle]:
    """The principles in the random order of a prompt or pair of that number: what is drawn for it comes first."""
    return [principles[i] for i in np.random.default_rng((seed, number)).permutation(len(principles))]


def _one(row: Mapping[str, Any], where: str, number: int) -> Principle:
    for field, value in row.items():
        if field not in FIELDS:
            raise Fault(f"{where}: a principle has no field {field!r}; {nearest(field, FIELDS)}")
        if not isinstance(value, str) or not value.strip():
            raise Fault(f"{where}: the principle's field {field!r} is empty or no text; write it, or leave it out")
    whole = row.get("principle", "")
    if not whole and not any(use in row for use in USES):
        raise Fault(f"{where}: the principle is empty; say what it asks for ({', '.join(USES)})")
    said = {use: row.get(use, whole).strip() for use in USES}
    return Principle(row.get("name", str(number)).strip(), **said)


def _objects(path: Any) -> Iterator[Record]:
    rows = JsonLines(path)
    yield from (rows[i] for i in range(len(rows)))


def _paragraphs(text: str, path: str) -> Iterator[Record]:
    lines, fields, last, begun = text.splitlines(), {}, "", 0
    for number, line in enumerate([*lines, ""], start=1):
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield Record(fields, f"{path}:{begun}")
            fields, last = {}, ""
            continue
        label = LABEL.fullmatch(line.strip() + " ")
        named = label is not None and (label[1].lower() in FIELDS or bool(fields and last != "principle"))
        if label is not None and named:
            last, said = label[1].lower(), label[2].strip()
            if last in fields:
                raise Fault(
                    f"{path}:{number}: the principle says {last!r} twice; leave a blank line between principles"
                )
        else:
            said, last = line.strip(), last or "principle"
        begun = begun if fields else number
        fields[last] = f"{fields[last]}\n{said}" if last in fields else said
