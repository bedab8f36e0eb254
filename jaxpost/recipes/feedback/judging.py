# SPDX-License-Identifier: Apache-2.0
"""Preferences of a model: pairs of answers, judged by written principles, as rows that reward and preference recipes
learn from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxpost.data import principles
from jaxpost.data.principles import Principle, Wording, wording
from jaxpost.evals import judge
from jaxpost.evals.judge import Compared, Look, Opinion, Orders, Verdict
from jaxpost.faults import Fault
from jaxpost.recipes.feedback.asking import Speaks
from jaxpost.recipes.feedback.stages import Row, rows_kept
from jaxpost.sample import Sampling

CHUNK = 64  # pairs that are judged before they are kept
JUDGED = "judged.jsonl"
Keep = Literal["all", "extremes"]


@dataclass(frozen=True)
class Judging:
    """How pairs of answers are judged. Files are named by path, or by the built-in set (general, nano) they are in.

    principles: what is judged by, `each` of them for a pair, whose probabilities are averaged. prompt, examples: how
    the judge is asked, and solved examples before it. reasoning: what it is asked first, to think before it judges.
    how: by the likelihoods of the two letters, or by the letter that it writes. orders: whether a pair is shown both
    ways round and the probabilities are averaged, or both must prefer the same answer (else it is a tie), or `one` way,
    drawn. tie: how near to one half a probability is a tie. least: letters less likely than this together are neither.
    neither: whether a pair for which the judge says neither letter is dropped or a tie. ties: dropped, or kept with the
    probability that they have. labels: a pair counts 1 (hard), twice its distance from one half (confidence), or is
    learned both ways round, each as much as it is likely (soft; the loss is then the cross-entropy to the judge).
    """

    principles: str = "general"
    prompt: str = "general"
    examples: str = ""
    reasoning: str = ""
    how: Literal["likelihood", "written"] = "likelihood"
    letters: tuple[str, str] = ("A", "B")
    orders: Orders = "average"
    each: int = 1
    tie: float = 0.0
    least: float = 0.0
    neither: Literal["drop", "tie"] = "drop"
    ties: Literal["drop", "keep"] = "drop"
    labels: Literal["hard", "confidence", "soft"] = "hard"
    sampling: Sampling = Sampling(max_new=128)
    seed: int = 0


@dataclass(frozen=True)
class Court:
    """A judge's files, read and checked."""

    config: Judging
    principles: tuple[Principle, ...]
    prompt: Wording
    reasoning: Wording | None

    def opinions(self, speaker: Speaks, pairs: Sequence[Compared], looks: Sequence[Look], seed: int) -> list[Opinion]:
        reasons = None
        if self.reasoning is not None:
            asked = judge.questions(pairs, looks, self.reasoning)
            drawn = replace(self.config.sampling, seed=seed)
            reasons = [answer.text for (answer,) in speaker.write(asked, drawn)]
        asked = judge.questions(pairs, looks, self.prompt, reasons)
        if self.config.how == "likelihood":
            return judge.by_likelihood(speaker.letters(asked, self.config.letters), self.config.least)
        written = speaker.write(asked, replace(self.config.sampling, seed=seed + 1))
        return judge.by_words([answer.text for (answer,) in written], self.config.letters)


def court(config: Judging) -> Court:
    """The judge's files. Raises `Fault` for one that is missing, empty or asks for what there is not, before any model
    is read."""
    one, other = config.letters
    if not one or not other or one.startswith(other) or other.startswith(one):
        raise Fault(
            f"judging.letters are {one!r} and {other!r}; give two of which neither begins the other, as A and B"
        )
    known = principles.read(config.principles, ("judge",))
    if not 1 <= config.each <= len(known):
        raise Fault(f"judging.each is {config.each}; a pair is judged by 1 to {len(known)} of the principles there are")
    if not 0 <= config.tie < 0.5 or not 0 <= config.least < 1:
        raise Fault(
            f"judging.tie is {config.tie} and judging.least {config.least}; they are below one half and below 1"
        )
    prompt = wording("reasoned_judge" if config.reasoning else "judge", config.prompt, config.examples)
    reasoning = wording("reasoning", config.reasoning) if config.reasoning else None
    return Court(config, known, prompt, reasoning)


class Ruling(NamedTuple):
    """A pair, what the judge was asked and said of it, and what that comes to."""

    pair: Compared
    said: Sequence[Row]
    verdict: Verdict


def judged(made: Court, speaker: Speaks, pairs: Sequence[Compared], directory: Path) -> list[Ruling]:
    """A verdict on every pair, kept with all that was said of it in `judged.jsonl` as soon as it is known."""
    config = made.config

    def some(numbers: range) -> list[Row]:
        here = [pairs[i] for i in numbers]
        looks = judge.looks(here, made.principles, config.seed, config.each, config.orders)
        opinions = made.opinions(speaker, here, looks, config.seed + 2 * numbers.start)
        found = judge.verdicts(len(here), looks, opinions, config.orders, config.tie)
        return [_kept(at, pair, found[at], looks, opinions) for at, pair in enumerate(here)]

    rows = rows_kept(directory / JUDGED, len(pairs), CHUNK, some, "judging pairs")
    return [Ruling(pair, row["said"], _verdict(row["verdict"])) for pair, row in zip(pairs, rows, strict=True)]


def statistics(rulings: Sequence[Ruling]) -> dict[str, Any]:
    """How the judge judged."""
    said = [one for ruling in rulings for one in ruling.said]
    opinions = [Opinion(math.nan if one["first"] is None else one["first"], one["share"]) for one in said]
    return judge.statistics(opinions, [ruling.verdict for ruling in rulings])


def preferences(rulings: Sequence[Ruling], config: Judging, keep: Keep = "all") -> tuple[list[Row], dict[str, int]]:
    """Rows of `prompt`, `chosen` and `rejected`, the judge's `probability` that the chosen one is better, and their
    `weight`; and how many pairs were left out, by why. Of `extremes` one pair a prompt is kept: of its answers the one
    that wins most and the one that wins least."""
    rows: list[Row] = []
    counts = {"ties": 0, "neither": 0}
    likely = [(ruling, _probability(ruling.verdict, config)) for ruling in rulings]
    for ruling, p in _extremes(likely) if keep == "extremes" else likely:
        if p is None or (p == 0.5 and config.labels != "soft"):
            counts["neither" if ruling.verdict.reason == "neither" else "ties"] += 1
            continue
        ways = [(p, False), (1 - p, True)] if config.labels == "soft" else [(max(p, 1 - p), p < 0.5)]
        for probability, swapped in ways:
            weight = {"hard": 1.0, "confidence": 2 * probability - 1, "soft": probability}[config.labels]
            if weight:
                rows.append(_row(ruling, swapped, probability, weight))
    return rows, counts


def _probability(verdict: Verdict, config: Judging) -> float | None:
    """How likely the first answer is better, as far as that is to be learned."""
    if verdict.reason == "neither" and config.neither == "drop":
        return None
    if verdict.reason != "judged" and config.ties == "drop":
        return None
    return 0.5 if verdict.reason == "neither" else verdict.probability


def _extremes(likely: Sequence[tuple[Ruling, float | None]]) -> list[tuple[Ruling, float | None]]:
    """Of each group its best answer against its worst, by their mean probabilities of winning; what was said of all of
    its pairs goes with them. Groups without a verdict stay as they are, to be counted."""
    groups: dict[int, list[tuple[Ruling, float]]] = {}
    found: list[tuple[Ruling, float | None]] = []
    for ruling, p in likely:
        if p is None:
            found.append((ruling, None))
        else:
            groups.setdefault(ruling.pair.group, []).append((ruling, p))
    for rulings in groups.values():
        wins: dict[str, list[float]] = {}
        for ruling, p in rulings:
            wins.setdefault(ruling.pair.one, []).append(p)
            wins.setdefault(ruling.pair.other, []).append(1 - p)
        mean = {answer: float(np.mean(each)) for answer, each in wins.items()}
        best, worst = max(mean, key=mean.__getitem__), min(mean, key=mean.__getitem__)
        pair = replace(rulings[0][0].pair, one=best, other=worst)
        said = [one for ruling, _ in rulings for one in ruling.said]
        found.append((rulings[0][0]._replace(pair=pair, said=said), (1 + mean[best] - mean[worst]) / 2))
    return found


def _row(ruling: Ruling, swapped: bool, probability: float, weight: float) -> Row:
    pair, verdict = ruling.pair, ruling.verdict
    chosen, rejected = (pair.other, pair.one) if swapped else (pair.one, pair.other)
    return {
        "prompt": pair.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "probability": round(probability, 6),
        "weight": round(weight, 6),
        "principle": ", ".join(dict.fromkeys(one["principle"] for one in ruling.said)),
        "judged": verdict.reason,
    }


def _kept(at: int, pair: Compared, verdict: Verdict, looks: Sequence[Look], opinions: Sequence[Opinion]) -> Row:
    said = [
        {
            "principle": look.principle.name,
            "swapped": look.swapped,
            "first": _json(opinion.first),
            "share": opinion.mass,
        }
        for look, opinion in zip(looks, opinions, strict=True)
        if look.pair == at
    ]
    told = {"prompt": pair.prompt, "one": pair.one, "other": pair.other}
    return {**told, "said": said, "verdict": [_json(part) for part in verdict]}


def _verdict(parts: Sequence[Any]) -> Verdict:
    return Verdict(*(math.nan if part is None else part for part in parts))  # pyright: ignore[reportArgumentType]


def _json(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
