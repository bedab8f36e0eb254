# SPDX-License-Identifier: Apache-2.0
"""Chance that is the same in every process, on every machine and for every Python version."""

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

Item = TypeVar("Item")


def fingerprint(text: str) -> int:
    """A 64-bit number that depends on the text alone (`hash` differs from process to process)."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class Dice:
    """Random draws from a seed.

    Everything is made from `random.Random(seed).random`, the one method whose stream Python promises not to change;
    `choice`, `sample` and `shuffle` carry no such promise (and are slower).
    """

    __slots__ = ("_random",)

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def below(self, stop: int) -> int:
        """A whole number in [0, stop)."""
        return int(self._random() * stop)

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self._random() * len(items))]

    def draw(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` items of different positions, in random order."""
        total = len(items)
        if count * 3 > total:
            return self.shuffled(items)[:count]
        places: list[int] = []
        while len(places) < count:
            place = int(self._random() * total)
            if place not in places:
                places.append(place)
        return [items[place] for place in places]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        mixed = list(items)
        for place in range(len(mixed) - 1, 0, -1):
            other = int(self._random() * (place + 1))
            mixed[place], mixed[other] = mixed[other], mixed[place]
        return mixed

    def other(self, items: Sequence[Item], *than: Item) -> Item:
        """An item that is none of `than`; the items must have one."""
        while (item := self.pick(items)) in than:
            pass
        return item

    def say(self, patterns: Sequence[str], **fields: object) -> str:
        """One of the patterns, filled in."""
        return self.pick(patterns).format_map(fields)
