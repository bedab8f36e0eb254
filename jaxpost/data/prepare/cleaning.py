# SPDX-License-Identifier: Apache-2.0
"""Rows that teach nothing or the wrong thing, left out before anything is tokenised, each for one named reason.

No rule knows a language: characters are letters, marks or digits by Unicode, and what repeats is found in stretches of
characters.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost.data.prepare.cache import Track, code, folder, identity, key_of, once, quiet
from jaxpost.data.prepare.duplicates import near, windows
from jaxpost.data.rows.shapes import normalise
from jaxpost.data.rows.views import place_of
from jaxpost.data.sources.stored import NotKept
from jaxpost.data.tasks import Example
from jaxpost.faults import Fault

STRETCH = 32  # characters: what two texts rarely share by chance


@dataclass(frozen=True)
class Cleaning:
    """What is left out. 0 as a bound on characters or tokens, and 1 as a share, is no bound.

    `exact`: rows that are what an earlier one is, to the letter: all that they say, who says it, labels and scores.
    `near`: rows at least so alike to an earlier one that is kept (Jaccard similarity of their texts' stretches of 9
    characters, whatever else they hold; 0.8 is customary, 0 is off).
    `symbols`: rows with a larger share of characters that are neither letters, digits nor white space. `lines`: with a
    larger share of their text in lines that stood there before. `repeats`: with a larger share of stretches of 32
    characters that stood there before.
    """

    exact: bool = True
    near: float = 0.0
    min_chars: int = 0
    max_chars: int = 0
    min_tokens: int = 0
    max_tokens: int = 0
    symbols: float = 1.0
    lines: float = 1.0
    repeats: float = 1.0

    @property
    def does_something(self) -> bool:
        return self != Cleaning(exact=False)

    @property
    def counts_tokens(self) -> bool:
        return self.min_tokens > 0 or self.max_tokens > 0

    def check(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or (name in ("near", "symbols", "lines", "repeats") and value > 1):
                raise Fault(f"cleaning.{name} is {value}; it is {'a share, 0 to 1' if value > 1 else 'at least 0'}")
        for low, high in (("min_chars", "max_chars"), ("min_tokens", "max_tokens")):
            if 0 < getattr(self, high) < getattr(self, low):
                raise Fault(f"cleaning.{low} is {getattr(self, low)}, above cleaning.{high} {getattr(self, high)}")


KEEP_ALL = Cleaning(exact=False)


class Kept(Sequence[Any]):
    """The rows that cleaning left, in their order. `counts` says how many were left out, by reason."""

    def __init__(self, rows: Sequence[Any], indices: np.ndarray, counts: Mapping[str, int]):
        self._rows, self.indices, self.counts = rows, indices, dict(counts)
        # Not that of the cleaning: other settings that keep the same rows make the same data.
        self.identity = key_of(identity(rows), hashlib.blake2b(indices.tobytes(), digest_size=16).hexdigest())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[int(self.indices[index])]

    def place_of(self, index: int, epoch: int = 0) -> str:
        return place_of(self._rows, epoch, int(self.indices[index]))


def cleaned(
    rows: Sequence[Any],
    cleaning: Cleaning,
    columns: Mapping[str, str] | None = None,
    tokens: Callable[[Any], int] | None = None,
    told: str = "",
    root: Path | None = None,
    track: Track = quiet,
    waiting: Callable[[], None] = lambda: None,
    unkept: Callable[[NotKept], None] | None = None,
) -> Kept:
    """The rows that are left, found once on this host and kept on disk. `tokens` counts those of a row, `told` names
    the tokenizer that does; both are needed only where the cleaning asks for tokens. Where nothing can be kept,
    `unkept` is told why, and they are found for this time only; without it that is a fault."""
    cleaning.check()
    found: list[Kept] = []

    def find() -> Kept:
        reasons = left_out(rows, cleaning, columns, tokens, track)
        indices = np.array([i for i in range(len(rows)) if i not in reasons], np.int64)
        found.append(Kept(rows, indices, Counter(reasons.values())))
        return found[0]

    def make(draft: Path) -> None:
        kept = find()
        np.save(draft / "kept.npy", kept.indices)
        (draft / "counts.json").write_text(json.dumps(kept.counts))

    renamed = columns and sorted(columns.items())
    key = key_of(identity(rows), astuple(cleaning), renamed, told if cleaning.counts_tokens else "", code())
    try:
        entry = once((root or folder()) / "cleaned", key, make, waiting)
        kept = found[0] if found else _read(rows, entry)
    except NotKept as error:
        if unkept is None:
            raise
        unkept(error)
        kept = found[0] if found else find()
    if not len(kept):
        raise Fault(f"cleaning leaves nothing of {len(rows)} rows ({_listed(kept.counts)}); loosen its bounds")
    return kept


def _read(rows: Sequence[Any], entry: Path) -> Kept:
    try:
        return Kept(rows, np.load(entry / "kept.npy"), json.loads((entry / "counts.json").read_text()))
    except (OSError, ValueError) as error:
        raise Fault(f"{entry} is damaged: remove that folder, and it is made again") from error


def left_out(
    rows: Sequence[Any],
    cleaning: Cleaning,
    columns: Mapping[str, str] | None = None,
    tokens: Callable[[Any], int] | None = None,
    track: Track = quiet,
) -> dict[int, str]:
    """The rows that are left out, each with the first reason that applies, duplicates being the last ones."""
    reasons: dict[int, str] = {}
    seen: set[bytes] = set()
    for i in track(range(len(rows)), len(rows), "looking at rows"):
        row = rows[i]
        text = text_of(row, columns)
        if reason := fault_of(text, cleaning) or (_length(tokens(row), cleaning) if tokens else ""):
            reasons[i] = reason
        elif cleaning.exact or cleaning.near:
            digest = hashlib.blake2b(all_of(row, columns).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if digest in seen:
                reasons[i] = "duplicate" if cleaning.exact else "near duplicate"
            seen.add(digest)
    if cleaning.near:
        left = [i for i in range(len(rows)) if i not in reasons]
        texts = track((text_of(rows[i], columns) for i in left), len(left), "comparing rows")
        found = near(texts, lambda n: text_of(rows[left[n]], columns), cleaning.near)
        reasons |= {left[n]: "near duplicate" for n in found}
    return reasons


def fault_of(text: str, cleaning: Cleaning) -> str:
    """Why a text is left out for what it is alone; nothing if it is not."""
    if len(text) < cleaning.min_chars:
        return "too few characters"
    if 0 < cleaning.max_chars < len(text):
        return "too many characters"
    if cleaning.symbols < 1 and symbols(text) > cleaning.symbols:
        return "too many symbols"
    if cleaning.lines < 1 and repeated_lines(text) > cleaning.lines:
        return "repeated lines"
    if cleaning.repeats < 1 and repeated(text) > cleaning.repeats:
        return "repeats itself"
    return ""


def symbols(text: str) -> float:
    """The share of characters that are neither letters (with their marks) nor digits, of those that are no space."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _kinds()[points]
    return float((kinds == 0).sum() / max(1, (kinds < 2).sum()))


@cache
def _kinds() -> np.ndarray:
    """For every character of Unicode 1 if it is of a word, 2 if it is white space, else 0."""
    kinds = np.zeros(0x110000, np.int8)
    for point in range(0x110000):
        character = chr(point)
        if character.isspace():
            kinds[point] = 2
        elif unicodedata.category(character)[0] in "LMN":
            kinds[point] = 1
    return kinds


def repeated_lines(text: str) -> float:
    """The share of the text's characters in lines that stood there before (blank ones do not count)."""
    lines = [line for part in text.splitlines() if (line := part.strip())]
    seen: set[str] = set()
    again = 0
    for line in lines:
        again += len(line) if line in seen else 0
        seen.add(line)
    return again / max(1, sum(map(len, lines)))


def repeated(text: str) -> float:
    """The share of the text's stretches of 32 characters that stood there before; 0 for shorter ones."""
    found = windows(text, STRETCH)
    return 1 - len(np.unique(found)) / len(found)


def all_of(row: Any, columns: Mapping[str, str] | None = None) -> str:
    """All that a row is: its shape and every field of it, those that are no text and the roles of messages too."""
    said = (row.prompt, row.target) if isinstance(row, Example) else normalise(row, columns)
    return json.dumps([type(said).__name__, _plain(said)], sort_keys=True, default=repr)


def _plain(said: Any) -> Any:
    if is_dataclass(said):
        return {field.name: _plain(getattr(said, field.name)) for field in fields(said)}
    if isinstance(said, Mapping):
        return {str(name): _plain(value) for name, value in said.items()}
    return [_plain(part) for part in said] if isinstance(said, list | tuple) else said


def text_of(row: Any, columns: Mapping[str, str] | None = None) -> str:
    """All that a row says, whatever its shape: its strings and the contents of its messages."""
    if isinstance(row, Example):
        return f"{row.prompt}\n{row.target}"
    return "\n".join(_strings(normalise(row, columns)))


def _strings(said: Any) -> list[str]:
    if isinstance(said, str):
        return [said]
    if is_dataclass(said):
        return [text for field in fields(said) for text in _strings(getattr(said, field.name))]
    if isinstance(said, Mapping):  # a message; its role is no text
        return [text for name, value in said.items() if name != "role" for text in _strings(value)]
    return [text for part in said for text in _strings(part)] if isinstance(said, list | tuple) else []


def _length(count: int, cleaning: Cleaning) -> str:
    if count < cleaning.min_tokens:
        return "too few tokens"
    return "too many tokens" if 0 < cleaning.max_tokens < count else ""


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
