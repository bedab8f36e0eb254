# SPDX-License-Identifier: Apache-2.0
"""Answers to one prompt, packed so that they can be compared: all of them in one row, each as a segment of its own.

Of a pair the chosen answer is segment 2i - 1 and the rejected one 2i. Both repeat the prompt, which is not trained, so
a sum over a segment's mask is the sum over its answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpost.data.batches.loader import Batch, Said
from jaxpost.data.batches.packing import MOST, Group
from jaxpost.data.chat.template import Template
from jaxpost.data.rows.shapes import KNOWN, Preference, Ranking, normalise, shape_of
from jaxpost.data.text import answered, compared, place
from jaxpost.data.tokenizers import Tokens, newest
from jaxpost.faults import Fault


@dataclass(frozen=True)
class Pairs:
    """Rows of `chosen` and `rejected`. A batch holds besides the usual arrays

    - pairs int32[rows]: how many pairs a row has;
    - margin float32[rows, MOST / 2]: by how much pair i is apart, where the data say so, else 0.
    """

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        found = normalise(row, columns)
        if not isinstance(found, Preference):
            raise Fault(_not(row, columns, "preference"))
        margin = () if found.margin is None else (found.margin, found.margin)
        return compared(found, template, place(row)), margin

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        return comparable(group, room, bos)

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        margin = np.zeros((len(rows), MOST // 2), np.float32)
        for i, row in enumerate(rows):
            margin[i, : len(row)] = [group.values[0] if group.values else 0.0 for group in row]
        return {"pairs": np.array([len(row) for row in rows], np.int32), "margin": margin}


@dataclass(frozen=True)
class Rankings:
    """Rows of `completions` and their `scores`, the best one first in its row. A batch holds besides the usual arrays

    - groups int32[rows, MOST]: the prompt, counted from 1 within the row, that segment s + 1 answers; 0 for none;
    - scores float32[rows, MOST]: what the data say of segment s + 1.
    """

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        found, where = normalise(row, columns), place(row)
        if not isinstance(found, Ranking):
            raise Fault(_not(row, columns, "ranking"))
        if len(found.completions) > MOST:
            raise Fault(f"{where}: {len(found.completions)} completions; a row of a batch holds {MOST} at most")
        best = sorted(range(len(found.scores)), key=lambda i: -found.scores[i])
        answers = tuple(answered(found.prompt, found.completions[i], template, where) for i in best)
        return answers, tuple(float(found.scores[i]) for i in best)

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        return comparable(group, room, bos)

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        groups, scores = np.zeros((len(rows), MOST), np.int32), np.zeros((len(rows), MOST), np.float32)
        for i, row in enumerate(rows):
            sizes = [len(group.members) for group in row]
            groups[i, : sum(sizes)] = np.repeat(np.arange(1, len(row) + 1), sizes)
            scores[i, : sum(sizes)] = [score for group in row for score in group.values]
        return {"groups": groups, "scores": scores}


def comparable(group: Group, room: int, bos: int | None) -> Group | None:
    """A group cut to `room` positions so that its answers can still be compared: all keep the same prompt, and the same
    number of tokens at most.

    The prompt is cut first, from the left (what was said last matters most; reserved places and the bos stay), but not
    below half of an equal share of the room; then the answers from the right, the longest first. None if an answer has
    no trained token left, or if all of them have become the same.
    """
    members = group.members
    prompt = shared(members)
    answers = [len(tokens.ids) - prompt for tokens in members]
    budget = room + len(members)  # in tokens: each member's first one takes no position
    least = int((members[0].ids[:prompt] < 0).sum())
    kept = min(prompt, max(least, min(prompt, budget // len(members) // 2), (budget - sum(answers)) // len(members)))
    most = level(answers, budget - len(members) * kept)
    head = newest(members[0].ids[:prompt], kept, bos)
    cut = []
    for tokens, length in zip(members, answers, strict=True):
        at = np.concatenate([head, np.arange(prompt, prompt + min(length, most))])
        cut.append(Tokens(tokens.ids[at], tokens.trained[at]))
    if not all(tokens.trained[1:].any() for tokens in cut):
        return None
    if len(cut) > 1 and all(np.array_equal(tokens.ids, cut[0].ids) for tokens in cut):
        return None
    return Group(tuple(cut), group.values)


def shared(members: Sequence[Tokens]) -> int:
    """How many tokens the members have in common before any of them is trained: the prompt's."""
    first = members[0].ids
    length = min(int(tokens.trained.argmax()) if tokens.trained.any() else len(tokens.ids) for tokens in members)
    for tokens in members[1:]:
        differs = tokens.ids[:length] != first[:length]
        length = int(differs.argmax()) if differs.any() else length
    return length


def level(sizes: Sequence[int], budget: int) -> int:
    """The largest m for which the sum of min(size, m) is within the budget; the largest size if all fit."""
    left, count = budget, len(sizes)
    for size in sorted(sizes):
        if size * count > left:
            return max(0, left // count)
        left, count = left - size, count - 1
    return max(sizes)


def _not(row: Any, columns: Mapping[str, str] | None, wanted: str) -> str:
    kind = shape_of(row, columns)
    return f"{place(row)}: a row of the shape {kind!r} ({KNOWN[kind]}), where {KNOWN[wanted]} is needed"
