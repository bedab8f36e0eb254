# SPDX-License-Identifier: Apache-2.0
"""Stages in which a model gives itself, or another, something to learn from: prompts are drawn, answered, compared.

Each stage reads the models that it needs and lets them go: one copy of a base is in memory at a time.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost.data.principles import plain
from jaxpost.evals.rewards import Answered
from jaxpost.faults import Fault
from jaxpost.recipes import trained
from jaxpost.recipes.base import Model, Pretrained
from jaxpost.recipes.feedback import answering, judging, learning
from jaxpost.recipes.feedback.answering import Prompts
from jaxpost.recipes.feedback.asking import Speaker, Written, speaker
from jaxpost.recipes.feedback.learning import HELD_OUT, PAIRS, PROMPTS, START, ByTuning
from jaxpost.recipes.feedback.stages import Facts, Row, Stage, read_rows, write_rows
from jaxpost.recipes.rollouts import scoring
from jaxpost.recipes.rollouts.scoring import Function, Scoring
from jaxpost.sample import Sampling

MEASURED = "measured.jsonl"
WHO = ("policy", "start")
"""What a judge is called that is no run or model by its name."""


def check(config: Any) -> None:
    """That all files are there and all numbers make sense, before any model is read."""
    if not isinstance(config.model, Pretrained):
        raise Fault("model is drawn at random, and a model that gives feedback must know how; choose Pretrained(...)")
    for name, least in (("samples", 2), ("pairs", 0), ("rows", 1)):
        if (value := getattr(config.answering, name)) < least:
            raise Fault(f"answering.{name} is {value}; it must be at least {least}")
    if config.prompts.count < 0 or config.prompts.held_out < 0:
        raise Fault("prompts.count and prompts.held_out are numbers of prompts, 0 (of count: all) or more")
    if config.judge not in WHO:
        trained.base_of(config.judge)
    if config.also and isinstance(config.learning, ByTuning):
        raise Fault("also holds preferences to be mixed in, and tuning on the answers that won learns from none")
    judging.court(config.judging)
    if config.measures:
        Scoring(config.measures)
    learning.check(config.learning)


def seeded(config: Any, by: int | None = None) -> Any:
    """The config with its own seed added to every other in it, those of its runs too: so one number makes another run
    of all its stages."""
    by = config.seed if by is None else by
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner = seeded(value, by)
            changes[field.name] = replace(inner, seed=inner.seed + by) if hasattr(inner, "seed") else inner
    return replace(config, **changes)


def drawn(config: Any, sets: Mapping[str, Prompts], rounds: int = 1) -> Stage:
    """The first stage: prompts of every set are drawn, as many as so many rounds answer, and how the model answers
    those that are held out is measured."""

    def act(folder: Path) -> Facts:
        rows, held_out = [], []
        for name, prompts in sets.items():
            some = [row for number in range(rounds) for row in prompts.training(number * prompts.count)]
            rows += [{**row, "set": name} for row in some]
            held_out += [{**row, "set": name} for row in prompts.kept_apart()]
        write_rows(folder / PROMPTS, rows)
        write_rows(folder / HELD_OUT, held_out)
        told = measured(speaker(config.model, config.answering.rows), held_out, config, folder)
        return {"prompts": len(rows), "held-out prompts": len(held_out), "measures": told}

    return Stage(START, act)


def prompts_of(directory: Path, name: str) -> list[Row]:
    """The prompts of a set that the first stage has drawn."""
    return [row for row in read_rows(directory / START / PROMPTS) if row["set"] == name]


def answered(config: Any, policy: Model, name: str, rows: Callable[[], Sequence[Row]]) -> Stage:
    """A stage in which the policy answers prompts."""

    def act(folder: Path) -> Facts:
        by, given = speaker(policy, config.answering.rows), rows()
        some = answering.readable(by, given, config.answering.overlong, config.answering.sampling)
        done = answering.answered(by, some, config.answering, folder)
        told = {"prompts": len(done), "prompts left out": len(given) - len(some), "prompts cut": by.cut}
        return {"answers": sum(len(row["answers"]) for row in done), **told}

    return Stage(name, act)


def compared(config: Any, policy: Model, name: str, answers: Path) -> Stage:
    """A stage in which the judge compares answers: a file of preferences, and how it judged."""

    def act(folder: Path) -> Facts:
        pairs, uncompared = answering.pairs(read_rows(answers / answering.FILE), config.answering, config.judging.seed)
        named = dict(zip(WHO, (policy, config.model), strict=True)).get(config.judge, config.judge)
        by = speaker(named, config.answering.rows)
        rulings = judging.judged(judging.court(config.judging), by, pairs, folder)
        rows, counts = judging.preferences(rulings, config.judging, config.keep)
        left = {"left out": counts, "not compared": uncompared}
        if not rows:
            said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
            raise Fault(f"{folder}: the judge prefers nothing ({said}), so there is nothing to learn from; {JUDGING}")
        write_rows(folder / PAIRS, rows)
        judged = judging.statistics(rulings)
        return {"preferences": len(rows), "judge": judged, **left, "questions cut": by.cut}

    return Stage(name, act)


JUDGING = "look at what it said in judged.jsonl, and change judging (prompt, examples, ties, least) or the judge"


def after(config: Any, directory: Path) -> Callable[[Path], Facts]:
    """What there is to tell of the model that a stage has left: how it answers the held-out prompts."""

    def act(folder: Path) -> Facts:
        rows = read_rows(directory / START / HELD_OUT)
        return {"measures": measured(speaker(str(folder), config.answering.rows), rows, config, folder)}

    return act


def measured(by: Speaker, asked: Sequence[Row], config: Any, folder: Path) -> dict[str, float]:
    """Of each set of prompts, what one greedy answer to each is scored by the functions, how long it is, and how many
    were cut off. The answers are kept in `measured.jsonl`."""
    done = [one for (one,) in by.write([row["prompt"] for row in asked], Sampling(config.answering.sampling.max_new))]
    write_rows(folder / MEASURED, [{**row, "said": vars(one)} for row, one in zip(asked, done, strict=True)])
    found: dict[str, float] = {}
    for name in dict.fromkeys(row["set"] for row in asked):
        own = [(row, one) for row, one in zip(asked, done, strict=True) if row["set"] == name]
        told = scored(by, config.measures, *zip(*own, strict=True))
        told["tokens"] = float(np.mean([one.tokens for _, one in own]))
        told["unfinished"] = float(np.mean([one.reason == "length" for _, one in own]))
        found |= {f"{name} {measure}".strip(): round(value, 4) for measure, value in told.items()}
    return found


def scored(
    by: Speaker, measures: tuple[Function, ...], asked: Sequence[Row], said: Sequence[Written]
) -> dict[str, float]:
    """The mean of what each of the functions says of answers, where it says something."""
    if not measures or not asked:
        return {}
    judge = Scoring(measures)
    prompts = [str(by.text(row["prompt"])[0]) for row in asked]
    told = zip(prompts, said, asked, strict=True)
    scores = judge.judged([Answered(text, one.text, row, one.tokens, one.reason) for text, one, row in told], {})
    means = scoring.describe(scores, judge.names)
    return {name: value for name, value in means.items() if np.isfinite(value)}


def samples(directory: Path, last: Path, count: int = 12) -> list[Row]:
    """Held-out prompts, and what was said to them at the start and at the end."""
    before, now = (read_rows(folder / MEASURED) for folder in (directory / START, last))
    some = [i * len(before) // min(count, len(before)) for i in range(min(count, len(before)))]
    return [
        {"prompt": plain(before[i]["prompt"]), "before": before[i]["said"]["text"], "after": now[i]["said"]["text"]}
        for i in some
    ]
