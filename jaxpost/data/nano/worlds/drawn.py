# SPDX-License-Identifier: Apache-2.0
"""Rows of a world, made on demand: each a function of (world, kind, seed, split, index), on its own side of a split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar, overload

from jaxpost.data.nano.dice import Dice, fingerprint
from jaxpost.data.nano.generated import TEST_SHARE, TRIES
from jaxpost.data.tasks import Row, Split
from jaxpost.faults import Fault

Made = TypeVar("Made")
MakeRow = Callable[[Dice, Split], Row]


def apart(world: str, split: Split, draw: Callable[[], Made], key: Callable[[Made], str]) -> Made:
    """Draws until what is drawn belongs to the split, which its key alone decides: whatever kind of rows is made of
    it, for any seed, a key is never on both sides."""
    for _ in range(TRIES):
        made = draw()
        if (fingerprint(f"{world}|{key(made)}") % TEST_SHARE == 0) == (split == "test"):
            return made
    raise Fault(f"world {world}: {TRIES} draws, and none belongs to the {split} split; give it more different prompts")


@dataclass(frozen=True)
class Drawn(Sequence[Row]):
    """`size` rows of one kind; `make` draws one that belongs to the split."""

    world: str
    kind: str
    make: MakeRow = field(repr=False)
    split: Split
    size: int
    seed: int = 0

    @property
    def identity(self) -> str:
        """What the rows depend on, so that what is made of them can be kept without looking at each: these fields, the
        code of the world, and some rows, for what `make` knows besides."""
        return f"{self} {_code()} {fingerprint(repr([dict(row) for row in self[:16]])):x}"

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        place = f"{self.world}|{self.kind}|{self.seed}|{self.split}|{index % self.size}"
        return self.make(Dice(fingerprint(place)), self.split)


@cache
def _code() -> str:
    digest = blake2b(digest_size=8)
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
