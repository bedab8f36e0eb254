# SPDX-License-Identifier: Apache-2.0
"""Documents to pre-train on: plain text that states everything the tasks ask for, and no instructions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from jaxpost.data.nano.dice import Dice, fingerprint
from jaxpost.data.nano.prose import facts, numbers, papers, school, stories, talk, words
from jaxpost.data.nano.world import NAMES
from jaxpost.data.tasks import Split
from jaxpost.faults import Fault

Piece = Callable[[Dice], str]

# How much is written about a theme (first numbers: its share of the pieces).
THEMES = (
    (5, numbers.PIECES),
    (5, words.PIECES),
    (3, facts.PIECES),
    (5, stories.PIECES),
    (3, papers.PIECES),
    (4, talk.PIECES),
    (1, school.PIECES),
)
SHORTEST, LONGEST = 30, 220


# Now and then somebody says it.
SAID = (
    '{name} said: "{piece}"',
    '"{piece}" said {name}.',
    "{name} knows this: {piece}",
    "By the way: {piece}",
    "Everybody knows this: {piece}",
    "Remember: {piece}",
    "{name} wrote this: {piece}",
    "Look, {name}: {piece}",
)


def said(dice: Dice, piece: str) -> str:
    if dice.chance(0.1) and "\n" not in piece and '"' not in piece:
        return dice.say(SAID, piece=piece, name=dice.pick(NAMES))
    return piece


def repeated(weighted: Sequence[tuple[int, Piece]]) -> tuple[Piece, ...]:
    """Each piece as often as its weight says, so that a uniform pick is a weighted one."""
    return tuple(piece for weight, piece in weighted for _ in range(weight))


BY_THEME = tuple(repeated(pieces) for weight, pieces in THEMES for _ in range(weight))


def document(dice: Dice) -> str:
    """A text of 30 to 300 words about one theme or two; now and then the same thing said of many."""
    length = dice.between(SHORTEST, LONGEST)
    way = dice.below(4)
    if way == 0:
        pieces = [dice.pick(dice.pick(BY_THEME))]
    else:
        pieces = [*dice.pick(BY_THEME), *(dice.pick(BY_THEME) if way == 1 else ())]
    gap = dice.pick((" ", "\n", "\n"))
    written: list[str] = []
    count = 0
    while count < length:
        written.append(said(dice, dice.pick(pieces)(dice)))
        count += written[-1].count(" ") + written[-1].count("\n") + 1
    return gap.join(written)


@dataclass(frozen=True)
class Documents(Sequence[str]):
    """Random access to `size` documents; document i is a function of (seed, split, i), the same in every process."""

    split: Split = "train"
    size: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise Fault(f"documents have no split {self.split!r}; their splits are train and test")

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        return document(Dice(fingerprint(f"documents|{self.seed}|{self.split}|{index % self.size}")))
