# SPDX-License-Identifier: Apache-2.0
"""Answers to one prompt, packed so that they can be compared: all of them in one row, each as a segment of its own.

Of a pair the chosen answer is segment 2i - 1 and the rejected one 2i. Both repeat the prompt, which is not trained, so
a sum over a segment's mask is the sum over its answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxpost.data.batches.loader import Batch, Said
from jaxpost.data.batches.packing import MOST, Group, Why
from jaxpost.data.chat.template import Template
from jaxpost.data.rows.shapes import KNOWN, Preference, Ranking, normalise, shape_of
from jaxpost.data.rows.votes import Votes
from jaxpost.data.text import answered, compared, place
from jaxpost.data.tokenizers import Tokens, newest
from jaxpost.faults import Fault


@dataclass(frozen=True)
class Handling:
    """What becomes of rows that teach nothing: those whose answers are equal, those of which nobody knows which is
    better, and those with an empty answer. `drop` leaves them out and counts them, `error` stops at the first; `keep`
    learns from an answer that says nothing as from any other, and from ties, for losses that know them."""

    equal: Literal["drop", "error"] = "drop"
    ties: Literal["drop", "keep", "error"] = "drop"
    empty: Literal["drop", "keep", "error"] = "drop"

    def judged(self, why: Why, where: str) -> Said:
        """The row as one that is left out."""
        if {"equal": self.equal, "tied": self.ties, "empty": self.empty}[why] == "error":
            raise Fault(f"{where}: {WORDS[why]}; remove the row, or let such rows be left out ('drop') and counted")
        return Said((), (), why)


WORDS: dict[Why, str] = {
    "equal": "the answers are equal, so there is nothing to prefer",
    "empty": "an answer is empty",
    "tied": "no answer is better than another",
}


@dataclass(frozen=True)
class Pairs:
    """Rows of `chosen` and `rejected`; or rankings, of which the best answer and the worst are compared. A batch holds
    besides the usual arrays, P being MOST / 2,

    - margin float32[rows, P]: by how much pair i is apart, where the data say so, else 0;
    - weight float32[rows, P]: what pair i counts, 1 unless the data say something else; 0 where there is no pair;
    - agreement float32[rows, P]: the share of those who chose that took the chosen answer, 1 where nobody was asked;
      one half is a tie;
    - reference float32[rows, MOST], if `reference`: what was stored for segment s + 1.

    Answers that are `whole` are read to their end token, where they are scored, instead of to the one before it.
    """

    handling: Handling = Handling()
    whole: bool = False
    reference: bool = False

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        found, where = normalise(row, columns), place(row)
        if isinstance(found, Ranking):
            found = extremes(found)
        if not isinstance(found, Preference):
            raise Fault(_not(row, columns, "preference"))
        why = unfit((found.chosen, found.rejected), found.tied, self.handling)
        if why is not None:
            return self.handling.judged(why, where)
        values = found.margin or 0.0, found.weight, agreement(found)
        return Said(compared(found, template, where), values, votes=found.votes, whole=self.whole)

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        return comparable(group, room, bos)

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        names = ("margin", "weight", "agreement")
        found = {name: numbers(rows, slice(i, i + 1), MOST // 2) for i, name in enumerate(names)}
        return found | ({"reference": numbers(rows, slice(3, 5), MOST)} if self.reference else {})


@dataclass(frozen=True)
class Rankings:
    """Rows of `completions` and their `scores`, the best one first in its row; a preference is a ranking of two. A
    batch holds besides the usual arrays

    - groups int32[rows, MOST]: the prompt, counted from 1 within the row, that segment s + 1 answers; 0 for none;
    - scores float32[rows, MOST]: what the data say of segment s + 1;
    - weight float32[rows, MOST]: what the group of segment s + 1 counts; 0 for none.

    Answers judged by themselves (not `compared`) may be tied, and there may be one.
    """

    handling: Handling = Handling()
    compared: bool = True
    whole: bool = False

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        found, where = normalise(row, columns), place(row)
        if isinstance(found, Preference):
            scores = (found.margin or 1.0, 0.0) if not found.tied else (0.0, 0.0)
            found = Ranking(found.prompt, (found.chosen, found.rejected), scores, found.weight, found.votes)
        if not isinstance(found, Ranking):
            raise Fault(_not(row, columns, "ranking"))
        if len(found.completions) > MOST:
            raise Fault(f"{where}: {len(found.completions)} completions; a row of a batch holds {MOST} at most")
        tied = not found.scores or self.compared and len(set(found.scores)) < 2
        why = unfit(found.completions, tied, self.handling, self.compared)
        if why is not None:
            return self.handling.judged(why, where)
        best = sorted(range(len(found.scores)), key=lambda i: -found.scores[i])
        answers = tuple(answered(found.prompt, found.completions[i], template, where) for i in best)
        scores = tuple(float(found.scores[i]) for i in best)
        return Said(answers, (*scores, found.weight), votes=found.votes, whole=self.whole)

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        return comparable(group, room, bos)

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        groups, weight = np.zeros((len(rows), MOST), np.int32), np.zeros((len(rows), MOST), np.float32)
        for i, row in enumerate(rows):
            sizes = [len(group.members) for group in row]
            groups[i, : sum(sizes)] = np.repeat(np.arange(1, len(row) + 1), sizes)
            weight[i, : sum(sizes)] = np.repeat([group.values[-1] for group in row], sizes)
        return {"groups": groups, "scores": numbers(rows, slice(0, -1), MOST), "weight": weight}


def extremes(found: Ranking) -> Preference:
    """The best answer of a ranking and the worst, the first of equals; of answers that are tied, the first and last."""
    if not found.scores:
        return Preference(found.prompt, "", "", tied=True)
    best, worst = (found.scores.index(end(found.scores)) for end in (max, min))
    tied, last = best == worst, len(found.scores) - 1
    answers = found.completions[best], found.completions[last if tied else worst]
    # Of more than two answers, who took neither of these said nothing about them.
    votes = found.votes if len(found.scores) == 2 else Votes()
    return Preference(found.prompt, *answers, weight=found.weight, votes=votes, tied=tied)


def agreement(found: Preference) -> float:
    """The share of those who chose an answer that took the one called chosen."""
    if found.tied:
        return 0.5
    return found.votes.agreeing / found.votes.decided if found.votes.asked else 1.0


def unfit(answers: Sequence[Any], tied: bool, handling: Handling, compared: bool = True) -> Why | None:
    """Why answers to one prompt teach nothing, if they do."""
    if handling.empty != "keep" and any(map(_empty, answers)):
        return "empty"
    if compared and len(answers) > 1 and all(one == answers[0] for one in answers):
        return "equal"
    return "tied" if tied and (handling.ties != "keep" or not answers) else None


def _empty(answer: Any) -> bool:
    """Whether it says nothing: no text, or messages without any."""
    if isinstance(answer, str):
        return not answer.strip()
    return not any(message.get("tool_calls") or str(message["content"]).strip() for message in answer)


def numbers(rows: Sequence[Sequence[Group]], at: slice, most: int) -> np.ndarray:
    """Those of each group's values that stand at these places, one behind the other: float32[rows, most]."""
    made = np.zeros((len(rows), most), np.float32)
    for i, row in enumerate(rows):
        found = [value for group in row for value in group.values[at]]
        made[i, : len(found)] = found
    return made


def comparable(group: Group, room: int, bos: int | None, alike: bool = False) -> Group | None:
    """A group cut to `room` positions so that its answers can still be compared: all keep the same prompt, and the same
    number of tokens at most.

    The prompt is cut first, from the left (what was said last matters most; reserved places and the bos stay), but not
    below half of an equal share of the room; then the answers from the right, the longest first. None if an answer has
    no trained token left, or if all of them have become the same, unless they may be `alike`.
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
    if len(cut) > 1 and not alike and all(np.array_equal(tokens.ids, cut[0].ids) for tokens in cut):
        return None
    return group._replace(members=tuple(cut))


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
