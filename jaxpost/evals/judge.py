# SPDX-License-Identifier: Apache-2.0
"""Which of two answers is better, by the word of a model that is asked by written principles.

A judge favours what stands first (Zheng et al. 2023, https://arxiv.org/abs/2306.05685, section 3.3), so a pair is shown
both ways round. It is asked for one of two letters, and their likelihoods are the verdict (Bai et al. 2022,
https://arxiv.org/abs/2212.08073, section 4.1), or it writes one of them.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxpost.data.principles import Asked, Principle, Wording, ordered, plain
from jaxpost.data.rows.shapes import Said
from jaxpost.data.tokenizers import Tokenizer, prompt_ids
from jaxpost.evals.rank import Pair, Scores

Orders = Literal["average", "agree", "one"]
Reason = Literal["judged", "tie", "neither"]


@dataclass(frozen=True)
class Compared:
    """Two answers to one prompt. `number` is theirs alone: what is drawn for them depends on it. Pairs of one `group`
    have the same prompt."""

    prompt: Said
    one: str
    other: str
    number: int = 0
    group: int = 0


@dataclass(frozen=True)
class Look:
    """One question to the judge: a pair (by its place), by one principle, shown as it is or swapped."""

    pair: int
    principle: Principle
    swapped: bool

    def places(self, pair: Compared) -> dict[str, str]:
        """What the question's words are filled with."""
        a, b = (pair.other, pair.one) if self.swapped else (pair.one, pair.other)
        return {
            "prompt": plain(pair.prompt),
            "answer_a": a.strip(),
            "answer_b": b.strip(),
            "question": self.principle.judge,
        }


class Opinion(NamedTuple):
    """How likely it is, by one look, that the answer shown first is the better one (NaN: it said neither), and the
    share of all it might have said that the two letters take (1 where it wrote one)."""

    first: float
    mass: float = 1.0


class Verdict(NamedTuple):
    """How likely `one` is better than `other`; what the judge said of that when it was shown first, and second (NaN:
    neither letter, or not asked); the least share of the letters; and whether the pair is a tie or was not judged."""

    probability: float
    shown_first: float
    shown_second: float
    mass: float
    reason: Reason


def looks(
    pairs: Sequence[Compared], principles: Sequence[Principle], seed: int, each: int, orders: Orders
) -> list[Look]:
    """What is asked: of every pair `each` principles, drawn for it, both ways round. Of one way (`one`) the dice decide
    which, so that no place is favoured over all pairs."""
    found = []
    for at, pair in enumerate(pairs):
        drawn = ordered(principles, seed, pair.number)[:each]
        ways = (bool(np.random.default_rng((seed, pair.number, 1)).integers(2)),) if orders == "one" else (False, True)
        found += [Look(at, principle, swapped) for principle in drawn for swapped in ways]
    return found


def questions(
    pairs: Sequence[Compared], asked: Sequence[Look], wording: Wording, reasons: Sequence[str] | None = None
) -> list[Asked]:
    """The words of each look; with what the judge thought before, if it was to."""
    thought = [{}] * len(asked) if reasons is None else [{"reasoning": reason.strip()} for reason in reasons]
    return [wording(**look.places(pairs[look.pair]), **more) for look, more in zip(asked, thought, strict=True)]


def choices(tokenizer: Tokenizer, prompt: str, opening: str, letters: Sequence[str]) -> list[Pair]:
    """Each letter behind the prompt and how the answer begins, tokenised as the model would read it there. Nothing ends
    it: neither letter begins the other, so none is favoured, and an answer that goes on is as good."""
    ids = prompt_ids(tokenizer, prompt)
    begun = [int(i) for i in tokenizer.encode_offsets(opening, prompt)[0]] if opening else []
    found = []
    for letter in letters:
        whole = [int(i) for i in tokenizer.encode_offsets(opening + letter, prompt)[0]]
        kept = len(os.path.commonprefix([begun, whole]))  # the letter may have joined a token that was begun
        found.append(([*ids, *whole[:kept]], whole[kept:]))
    return found


def by_likelihood(scores: Scores, least: float = 0.0) -> list[Opinion]:
    """Opinions from the scores of the first and the second letter of every look, one behind the other. Letters that
    together take less than the share `least` of what the judge might say are neither."""
    logprobs = np.asarray(scores.logprobs, np.float64).reshape(-1, 2)
    found = []
    for one, other in logprobs:
        known = math.isfinite(one) and math.isfinite(other)
        mass = math.exp(one) + math.exp(other) if known else 0.0
        sure = known and mass >= least
        found.append(Opinion(1 / (1 + math.exp(min(700.0, other - one))) if sure else math.nan, mass))
    return found


def by_words(written: Sequence[str], letters: Sequence[str]) -> list[Opinion]:
    """Opinions from what the judge wrote: the last letter that it set apart as in `[[A]]`; or else the last that stands
    by itself, as in `(A)`, `A.` or `A`, so that reasons may come first. Neither, if there is none."""
    either = "|".join(map(re.escape, letters))
    apart, alone = re.compile(rf"\[\[({either})\]\]"), re.compile(rf"(?<!\w)({either})(?!\w|'\w)")
    found = []
    for text in written:
        said = apart.findall(text) or alone.findall(text)
        found.append(Opinion(float(said[-1] == letters[0]) if said else math.nan))
    return found


def verdicts(
    count: int, asked: Sequence[Look], opinions: Sequence[Opinion], orders: Orders, tie: float = 0.0
) -> list[Verdict]:
    """What the opinions on each of `count` pairs come to. By each principle both ways must have been answered; its
    probability is the mean of both, and the pair's the mean over principles. It is a tie within `tie` of one half, and
    where both ways must `agree`, if either way round another answer is better."""
    per: list[dict[Principle, _Asked]] = [{} for _ in range(count)]
    for look, opinion in zip(asked, opinions, strict=True):
        heard = per[look.pair].setdefault(look.principle, _Asked([], [], []))
        (heard.second if look.swapped else heard.first).append(1 - opinion.first if look.swapped else opinion.first)
        heard.mass.append(opinion.mass)
    return [_verdict(list(by.values()), orders, tie) for by in per]


class _Asked(NamedTuple):
    """What was said of a pair by one principle: how likely `one` is better, shown first and second."""

    first: list[float]
    second: list[float]
    mass: list[float]


def _verdict(by: Sequence[_Asked], orders: Orders, tie: float) -> Verdict:
    ways = [[*heard.first, *heard.second] for heard in by]
    answered = [way for way in ways if not any(map(math.isnan, way))]
    first = _mean([p for heard in by for p in heard.first])
    second = _mean([p for heard in by for p in heard.second])
    mass = min(mass for heard in by for mass in heard.mass)
    if not answered:
        return Verdict(math.nan, first, second, mass, "neither")
    p = float(np.mean([np.mean(way) for way in answered]))
    split = orders == "agree" and any(min(way) < 0.5 < max(way) for way in answered)
    return Verdict(p, first, second, mass, "tie" if split or abs(p - 0.5) <= tie else "judged")


def statistics(opinions: Sequence[Opinion], found: Sequence[Verdict]) -> dict[str, Any]:
    """How the judge judged, over all pairs: how much more than half it gave to what stood first, the share of pairs on
    which both ways round agree, of ties and of pairs for which it said neither, and what its letters took of all that
    it might have said. A share of nothing is left out."""
    firsts = [opinion.first for opinion in opinions if not math.isnan(opinion.first)]
    both = [v for v in found if not (math.isnan(v.shown_first) or math.isnan(v.shown_second))]
    agreed = [(v.shown_first - 0.5) * (v.shown_second - 0.5) > 0 for v in both]
    shares: Mapping[str, float] = {
        "position bias": _mean(firsts) - 0.5,
        "agreement": _mean(agreed),
        "ties": _mean([v.reason == "tie" for v in found]),
        "neither": _mean([v.reason == "neither" for v in found]),
        "confidence": _mean([max(v.probability, 1 - v.probability) for v in found if v.reason != "neither"]),
        "letters' share": _mean([opinion.mass for opinion in opinions]),
    }
    told = {"pairs": len(found), "questions": len(opinions)}
    return told | {name: round(share, 4) for name, share in shares.items() if not math.isnan(share)}


def _mean(values: Sequence[float]) -> float:
    kept = [float(value) for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else math.nan
