# SPDX-License-Identifier: Apache-2.0
"""Texts that say nearly the same: candidates found by MinHash, each then compared exactly.

A text is the set of its stretches of 9 characters, in small letters and with white space made one space (which serves
languages that write no spaces; 9 is what Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.2.2,
take for documents). Two texts are as alike as their sets: |A and B| / |A or B| (Jaccard).
"""

from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

WIDTH = 9
PERMUTATIONS = 128
_DRAWN = np.random.default_rng(20).integers(0, 2**64, (3, PERMUTATIONS), np.uint64)
_FLIPS, _FACTORS, _MIXERS = _DRAWN[0], _DRAWN[1] | np.uint64(1), _DRAWN[2] | np.uint64(1)
BLOCK = 256  # stretches hashed at a time: what stays in a core's cache
SAMPLE, OFTEN = 256, 4  # of so many texts, what so many have is common


def windows(text: str, width: int) -> np.ndarray:
    """A hash for every stretch of `width` characters, uint64[max(1, characters - width + 1)]."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    if len(points) < width:
        points = np.concatenate([points, np.zeros(width - len(points), np.uint64)])
    count, found = len(points) - width + 1, np.zeros(len(points) - width + 1, np.uint64)
    for i in range(width):
        found = found * np.uint64(0x9E3779B97F4A7C15) + points[i : i + count]
    # Mixed once more (the end of splitmix64), or neighbours in the alphabet would be neighbours in what follows.
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))


def shingles(text: str) -> np.ndarray:
    """The set that a text is, as sorted hashes uint64[n]."""
    return np.unique(windows(" ".join(text.lower().split()), WIDTH))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """How alike two sets are: 0 (nothing in common) to 1 (the same)."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def signature(found: np.ndarray) -> np.ndarray:
    """The least element of a set under each of 128 permutations, uint64[128]: two sets agree in a place with a
    probability of their Jaccard similarity (Broder 1997). A permutation is a flip of bits and an odd factor."""
    least = np.full(PERMUTATIONS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(found), BLOCK):
        hashed = np.bitwise_xor.outer(_FLIPS, found[start : start + BLOCK])
        hashed *= _FACTORS[:, None]
        np.minimum(least, hashed.min(axis=1), out=least)
    return least


@cache
def bands(threshold: float) -> tuple[int, int]:
    """Into how many bands of how many places a signature is cut, so that texts as alike as the threshold share a band
    and others do not: the least sum of both mistakes' probabilities, a pair missed counting nine times a pair compared
    in vain (similarities taken as equally frequent)."""
    likeness = np.linspace(0, 1, 201)
    above = likeness >= threshold

    def cost(count: int, rows: int) -> float:
        missed = (1 - likeness**rows) ** count
        return float(9 * missed[above].sum() + (1 - missed[~above]).sum())

    cuts = [(count, rows) for rows in range(1, PERMUTATIONS + 1) for count in [PERMUTATIONS // rows]]
    return min(cuts, key=lambda cut: cost(*cut))


def near(texts: Iterable[str], again: Callable[[int], str], threshold: float) -> list[int]:
    """Which of the texts (by number, ascending) are as alike as `threshold` or more to an earlier one that is kept.

    `again(i)` gives text i once more, for those that share a band: what is kept of the others is a few numbers each.
    No text is named for one that it is less like than that; one that is more like may be missed, rarely.
    """
    count, rows = bands(threshold)
    keys = []
    for text in texts:
        least = (signature(shingles(text)) * _MIXERS)[: count * rows].reshape(count, rows)
        keys.append(np.bitwise_xor.reduce(least ^ (least >> np.uint64(29)), axis=1))
    if not keys:
        return []
    shared: dict[int, list[tuple[int, int]]] = {}  # text -> the (band, key) that it shares with others
    for band, column in enumerate(np.stack(keys, axis=1)):
        _, which, sizes = np.unique(column, return_inverse=True, return_counts=True)
        for i in np.flatnonzero(sizes[which] > 1).tolist():
            shared.setdefault(i, []).append((band, int(which[i])))
    return _compared(shared, lru_cache(1024)(lambda i: shingles(again(i))), threshold)


def _compared(shared: dict[int, list[tuple[int, int]]], of: Callable[[int], np.ndarray], threshold: float) -> list[int]:
    numbers, found = sorted(shared), []
    kept = _Kept(len(numbers), _common([of(i) for i in _spread(numbers)]))
    for i in numbers:
        one = kept.seen(of(i))
        if any(jaccard(of(i), of(other)) >= threshold for other in kept.candidates(one, shared[i], threshold)):
            found.append(i)
        else:
            kept.add(i, one, shared[i])
    return found


def _spread(numbers: list[int]) -> list[int]:
    return [numbers[i] for i in np.linspace(0, len(numbers) - 1, min(SAMPLE, len(numbers))).astype(int)]


def _common(sample: list[np.ndarray]) -> np.ndarray:
    """The stretches that several of a sample have, sorted: a template's, mostly."""
    if not sample:
        return np.zeros(0, np.uint64)
    every, counts = np.unique(np.concatenate(sample), return_counts=True)
    return every[counts >= OFTEN]


class _Seen(NamedTuple):
    """A text: its size as a set, how much of it is common, and signatures of the whole and of the rest."""

    size: int
    common: int
    whole: np.ndarray
    rest: np.ndarray


class _Kept:
    """The texts kept so far, of which those that may be as alike as the threshold to another are told at once.

    Texts made from one template share bands, all with all, and comparing each two exactly would take the square of
    their number. What they have in common is a number per text, and the rest, in which they differ, a signature.
    """

    def __init__(self, most: int, common: np.ndarray):
        self._common, self._count = common, 0
        self._numbers, self._sizes, self._commons = (np.zeros(most, np.int64) for _ in range(3))
        # Eight bits of each place are enough for an upper bound: they agree by chance once in 256.
        self._whole, self._rest = (np.zeros((PERMUTATIONS, most), np.uint8) for _ in range(2))
        self._by_key: dict[tuple[int, int], list[int]] = {}

    def seen(self, one: np.ndarray) -> _Seen:
        rest = one[~np.isin(one, self._common)]
        whole = _bytes(one)
        return _Seen(len(one), len(one) - len(rest), whole, whole if len(rest) == len(one) else _bytes(rest))

    def add(self, number: int, one: _Seen, keys: list[tuple[int, int]]) -> None:
        at = self._count
        self._numbers[at], self._sizes[at], self._commons[at] = number, one.size, one.common
        self._whole[:, at], self._rest[:, at] = one.whole, one.rest
        for key in keys:
            self._by_key.setdefault(key, []).append(at)
        self._count += 1

    def candidates(self, one: _Seen, keys: list[tuple[int, int]], threshold: float) -> list[int]:
        """The numbers of those that may be as alike, the likeliest first."""
        lists = [found for key in keys if (found := self._by_key.get(key))]
        if not lists:
            return []
        if 8 * sum(map(len, lists)) > self._count:  # telling them apart would take longer than taking all
            at: np.ndarray | slice = slice(self._count)
            which = np.arange(self._count)
        else:
            at = which = np.unique(np.concatenate(lists))
        rest = _agree(self._rest[:, at], one.rest)
        rest = rest + 3 * np.sqrt(np.maximum(rest * (1 - rest), 1 / PERMUTATIONS) / PERMUTATIONS)
        sizes, commons = self._sizes[at], self._commons[at]
        both = np.minimum(commons, one.common) + rest / (1 + rest) * (sizes - commons + one.size - one.common)
        alike = both / np.maximum(sizes + one.size - both, 1)
        chosen = np.flatnonzero(alike >= threshold)
        margin = 3 * np.sqrt(threshold * (1 - threshold) / PERMUTATIONS)
        whole = _agree(self._whole[:, which[chosen]], one.whole)
        chosen = chosen[np.argsort(-whole, kind="stable")][: int((whole >= threshold - margin).sum())]
        return self._numbers[which[chosen]].tolist()


def _bytes(found: np.ndarray) -> np.ndarray:
    return ((signature(found) * _MIXERS) >> np.uint64(56)).astype(np.uint8)


def _agree(many: np.ndarray, one: np.ndarray) -> np.ndarray:
    """In which share of the places each of many signatures (uint8[128, n]) is the same as one."""
    return (many == one[:, None]).sum(axis=0, dtype=np.uint8) / PERMUTATIONS
