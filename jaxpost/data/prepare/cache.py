# SPDX-License-Identifier: Apache-2.0
"""What is made once on a host and read again: rows as tokens, and whatever else is costly and follows from its key.

An entry is a folder named after the hash of all that it depends on, so nothing in it ever goes stale: other data,
another tokenizer or another version of the code that makes it is another entry. It appears whole or not at all.
"""

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jaxpost.data import text
from jaxpost.data.batches.loader import Unit, read
from jaxpost.data.batches.packing import Group, Why
from jaxpost.data.rows.views import place_of
from jaxpost.data.sources.stored import folder as folder
from jaxpost.data.sources.stored import keeping
from jaxpost.data.sources.stored import once as once
from jaxpost.data.tokenizers import Tokenizer, Tokens, TrainOn
from jaxpost.faults import Fault

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Passes items on and shows how far it is: items, how many there will be, what is done with them."""

TOKENS = "tokens"  # the folder of entries that are rows as tokens
TOGETHER = 256  # rows tokenised in one call
SAMPLE = 64  # rows by which two views on the same unchanged files are told apart
LIBRARIES = ("tokenizers", "sentencepiece", "jinja2")  # what turns text into tokens besides our own code


def quiet(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    return items


def key_of(*parts: Any) -> str:
    """A name for all that an entry depends on."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def identity(rows: Sequence[Any]) -> str:
    """What rows say, in a few characters. Of a source of files: their sizes and times of change, how many rows it
    shows of them, and what some of these are; of rows held in memory all that they say. A view on other rows may know
    better, and says so in an attribute `identity`."""
    if isinstance(said := getattr(rows, "identity", None), str):
        return said
    files = [(str(path), os.stat(path)) for path in getattr(rows, "files", ()) if os.path.isfile(path)]
    known = f"{type(rows).__name__} {len(rows)} {[(name, found.st_size, found.st_mtime_ns) for name, found in files]}"
    sample = np.linspace(0, len(rows) - 1, SAMPLE).astype(int) if files and len(rows) > SAMPLE else range(len(rows))
    digest = hashlib.blake2b(known.encode("utf-8", "surrogatepass"), digest_size=16)
    for i in sample:
        row = rows[int(i)]
        digest.update(f"{getattr(row, 'where', '')} {row!r}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def identity_of(tokenizer: Tokenizer) -> str:
    """The tokenizer's files and its template, as a hash, and the places that it reserves."""
    digest = hashlib.blake2b(repr(tokenizer.template).encode("utf-8", "surrogatepass"), digest_size=16)
    with keeping(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        for path in sorted(Path(directory).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{type(tokenizer).__name__} {tokenizer.virtual} {digest.hexdigest()}"


@cache
def code() -> str:
    """The code that turns rows into tokens, as a hash of its text, and the libraries that it calls."""
    digest = hashlib.blake2b(digest_size=16)
    room = Path(text.__file__).parent
    for path in sorted(room.rglob("*.py")):
        if path.parent.name not in ("clusters", "nano", "prose", "scenes"):
            digest.update(path.read_bytes())
    return " ".join([digest.hexdigest(), *(version(name) for name in LIBRARIES)])


class Tokenised(Sequence[Group]):
    """Rows as tokens, mapped from the disk: memory holds what is being read. `rows` are those they were made of."""

    def __init__(self, directory: Path, rows: Sequence[Any]):
        self.rows = rows
        try:
            kind = np.dtype(json.loads((directory / "about.json").read_text())["ids"])
            self._ends = _loaded(directory / "ends.npy")
            self._firsts, self._starts = _loaded(directory / "firsts.npy"), _loaded(directory / "starts.npy")
            self._values, self._votes = _loaded(directory / "values.npy"), _loaded(directory / "votes.npy")
            self._whys = _loaded(directory / "whys.npy")
            self._ids = _mapped(directory / "ids.bin", kind)
            self._trained = _mapped(directory / "trained.bin", np.dtype(np.uint8))
            whole = len(self._firsts) == len(rows) + 1 and len(self._ids) == len(self._trained) == self._ends[-1]
        except (OSError, ValueError, LookupError, TypeError):
            whole = False
        if not whole:
            raise Fault(f"{directory} is damaged: remove that folder, and it is made again")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Group:
        index = range(len(self))[index]
        first, last = int(self._firsts[index]), int(self._firsts[index + 1])
        ends = self._ends[first : last + 1].tolist()
        members = tuple(
            Tokens(self._ids[a:b].astype(np.int32), self._trained[a:b].astype(bool))
            for a, b in zip(ends, ends[1:], strict=False)
        )
        values = self._values[self._starts[index] : self._starts[index + 1]]
        why = (None, *get_args(Why))[self._whys[index]]
        asked, agreeing = self._votes[index].tolist()
        return Group(members, tuple(values.tolist()), why, (asked, agreeing))

    def place_of(self, index: int, epoch: int = 0) -> str:
        return place_of(self.rows, epoch, index)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64[examples]; of rows with one example each, of each row."""
        return np.diff(self._ends)


def tokenised(
    rows: Sequence[Any],
    tokenizer: Tokenizer,
    unit: Unit,
    columns: Mapping[str, str] | None = None,
    train_on: TrainOn = "completion",
    root: Path | None = None,
    track: Track = quiet,
    waiting: Callable[[], None] = lambda: None,
) -> Tokenised:
    """Rows that are the same in every epoch, tokenised once on this host. A row that cannot be raises, as when it is
    read: nothing is kept then."""

    def make(draft: Path) -> None:
        _write(draft, track(_read(rows, tokenizer, unit, columns, train_on), len(rows), "tokenising rows"), tokenizer)

    key = key_of_tokens(rows, tokenizer, unit, columns, train_on)
    return Tokenised(once((root or folder()) / TOKENS, key, make, waiting), rows)


def key_of_tokens(
    rows: Sequence[Any], tokenizer: Tokenizer, unit: Unit, columns: Mapping[str, str] | None, train_on: TrainOn
) -> str:
    """The entry of `tokenised`."""
    renamed = columns and sorted(columns.items())
    return key_of(identity(rows), renamed, repr(unit), train_on, identity_of(tokenizer), code())


def _read(rows: Sequence[Any], tokenizer: Tokenizer, unit: Unit, columns: Any, train_on: TrainOn) -> Iterator[Group]:
    for start in range(0, len(rows), TOGETHER):
        some = [rows[i] for i in range(start, min(start + TOGETHER, len(rows)))]
        yield from read(some, unit, tokenizer, columns, train_on)


def _write(directory: Path, groups: Iterable[Group], tokenizer: Tokenizer) -> None:
    small = tokenizer.vocab_size <= 2**16 and not tokenizer.virtual.count  # reserved places are below zero
    kind = np.dtype(np.uint16 if small else np.int32)
    ends, firsts, starts, values = array("q", [0]), array("q", [0]), array("q", [0]), array("d")
    whys, votes = array("b"), array("i")
    with (directory / "ids.bin").open("wb") as ids, (directory / "trained.bin").open("wb") as trained:
        for group in groups:
            for tokens in group.members:
                ids.write(tokens.ids.astype(kind).tobytes())
                trained.write(tokens.trained.tobytes())
                ends.append(ends[-1] + len(tokens.ids))
            firsts.append(firsts[-1] + len(group.members))
            values.extend(group.values)
            starts.append(len(values))
            whys.append((None, *get_args(Why)).index(group.why))
            votes.extend(group.votes)
    for name, numbers in (("ends", ends), ("firsts", firsts), ("starts", starts)):
        np.save(directory / f"{name}.npy", np.frombuffer(numbers, np.int64))
    np.save(directory / "values.npy", np.array(values, np.float64))  # there may be none, of which no buffer is made
    np.save(directory / "whys.npy", np.array(whys, np.int8))
    np.save(directory / "votes.npy", np.array(votes, np.int32).reshape(-1, 2))
    (directory / "about.json").write_text(json.dumps({"ids": kind.name, "examples": len(ends) - 1}))


def _loaded(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def _mapped(path: Path, kind: np.dtype) -> np.ndarray:
    return np.asarray(np.memmap(path, kind, "r"))  # a plain array: slices of memmaps are slow to make
