# SPDX-License-Identifier: Apache-2.0
"""What several people said of the same answers, as numbers: most votes decide, and how many agreed is kept."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxpost.data.rows.fields import kind_of
from jaxpost.faults import Fault

NONE = ("tie", "none", "neither", "both", "")
"""How a vote for no answer is written, besides null."""


class Votes(NamedTuple):
    """How many people were asked which answer is the best, how many said what most said, and how many took any."""

    asked: int = 0
    agreeing: int = 0
    decided: int = 0


def counted(value: Any, names: Sequence[str], place: str) -> tuple[int, ...]:
    """How many votes each answer has. A vote is the number of an answer, counted from 0, or its name; null, or `tie`,
    is a vote for none."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Fault(f"{place} must be a list with a vote of each person, not {kind_of(value)}")
    found = [0] * len(names)
    for i, vote in enumerate(value):
        if (number := _number(vote, names, f"{place}[{i}]")) is not None:
            found[number] += 1
    return tuple(found)


def _number(vote: Any, names: Sequence[str], place: str) -> int | None:
    said = str(vote).strip().lower() if isinstance(vote, str) else vote
    if said is None or said in NONE:
        return None
    if said in names:
        return names.index(said)
    number = int(said) if isinstance(said, str) and said.isdecimal() else said
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(names):
        return number
    known = "".join(f"{name!r}, " for name in names if not name.isdecimal())
    raise Fault(f"{place} must be {known}a number from 0 to {len(names) - 1}, or null for none, not {kind_of(vote)}")


def agreement(counts: Sequence[int], asked: int) -> Votes:
    return Votes(asked, max(counts), sum(counts))
