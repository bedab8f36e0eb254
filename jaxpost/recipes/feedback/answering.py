# SPDX-License-Identifier: Apache-2.0
"""Prompts, a model's answers to them, and pairs of those that can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxpost.data.batches.order import Order
from jaxpost.data.batches.packing import Overlong
from jaxpost.data.principles import located
from jaxpost.data.rows import shapes
from jaxpost.data.rows.fields import renamed
from jaxpost.data.tasks import Example
from jaxpost.data.text import place
from jaxpost.evals.judge import Compared
from jaxpost.faults import Fault
from jaxpost.recipes.corpus import Corpus, Files, Tasks, Tfds, World
from jaxpost.recipes.feedback.asking import Speaker, Speaks
from jaxpost.recipes.feedback.stages import Row, rows_kept
from jaxpost.sample import Sampling

CHUNK = 64  # prompts that are answered before they are kept
FILE = "answers.jsonl"


@dataclass(frozen=True)
class BuiltIn:
    """The red-team prompts that ship with the package, of a set (general)."""

    set: str = "general"

    def corpus(self) -> Files:
        return Files(str(located(self.set, "red_team")))


@dataclass(frozen=True)
class Prompts:
    """Rows whose prompts are answered: `count` of the source (0: all of them), in an order of its own for every seed,
    and `held_out` of those it keeps apart, to measure on."""

    source: Files | Tfds | World | Tasks | BuiltIn = BuiltIn()
    count: int = 0
    held_out: int = 32
    seed: int = 0

    @property
    def corpus(self) -> Corpus:
        return self.source.corpus() if isinstance(self.source, BuiltIn) else self.source

    def training(self, skip: int = 0) -> list[Row]:
        """Some of the rows, behind the first `skip` of that order; it begins again behind its end."""
        rows = self.corpus.training(self.seed)
        order = Order(len(rows), self.seed)
        numbers = range(skip, skip + (self.count or len(rows)))
        return [asked(rows[order(number)[1]], self.corpus.columns) for number in numbers]

    def kept_apart(self) -> list[Row]:
        rows = self.corpus.held_out(self.seed)
        return [asked(rows[i], self.corpus.columns) for i in range(min(self.held_out, len(rows)))]


def asked(row: Any, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """The fields of a row of any shape that has a prompt, which is under that name: text or messages."""
    if isinstance(row, Example):
        return {"prompt": row.prompt, "answer": row.target, "task": row.task}
    said = shapes.normalise(row, columns)
    if isinstance(said, shapes.Text | shapes.Marked):
        raise Fault(f"{place(row)}: a row without a prompt, and these are to be answered; map one (columns)")
    if isinstance(said, shapes.Dialogue):
        turns = [turn["role"] for turn in said.messages]
        last = len(turns) - turns[::-1].index("assistant") - 1 if "assistant" in turns else len(turns)
        prompt = said.messages[:last]
    else:
        prompt = said.prompt
    fields = {name: value for name, value in renamed(row, columns).row.items() if name != "messages"}
    if isinstance(said, shapes.Completion) and isinstance(said.completion, str):
        fields.setdefault("answer", said.completion)
    return {**fields, "prompt": prompt}


@dataclass(frozen=True)
class Answering:
    """How prompts are answered: `samples` answers each, of which at most `pairs` pairs (0: all) are compared. What was
    cut off at `sampling.max_new` tokens is compared all the same, or left out. A prompt that is longer than the model
    can read loses its beginning (`truncate`), is left out (`drop`) or is a `Fault` (`error`). `rows` answers are
    written at once."""

    samples: int = 2
    pairs: int = 0
    sampling: Sampling = Sampling(max_new=256, temperature=1.0)
    unfinished: Literal["keep", "drop"] = "keep"
    overlong: Overlong = "truncate"
    rows: int = 32

    def check(self, where: str) -> None:
        for name, least in (("samples", 1), ("pairs", 0), ("rows", 1)):
            if (value := getattr(self, name)) < least:
                raise Fault(f"{where}.{name} is {value}; it must be at least {least}")


def readable(speaker: Speaker, asked: Sequence[Row], overlong: Overlong, sampling: Sampling) -> list[Row]:
    """The rows whose prompts the model can read, or all of them, if they may lose their beginning."""
    if overlong == "truncate":
        return list(asked)
    fitting = [row for row in asked if speaker.fits(row["prompt"], sampling)]
    if overlong == "error" and len(fitting) < len(asked):
        raise Fault(
            f"{len(asked) - len(fitting)} prompts are longer than the model can read and answer in {sampling.max_new} "
            "tokens; lower the sampling's max_new, or set answering.overlong to drop or truncate"
        )
    if not fitting:
        raise Fault(f"all {len(asked)} prompts are longer than the model can read; set answering.overlong to truncate")
    return fitting


def answered(speaker: Speaks, asked: Sequence[Row], config: Answering, directory: Path) -> list[dict[str, Any]]:
    """The rows with their `answers`, each a `text`, why it stopped and how many tokens it has; kept in `answers.jsonl`
    as soon as they are written."""

    def some(numbers: range) -> list[Row]:
        here = [asked[i] for i in numbers]
        drawn = replace(config.sampling, seed=config.sampling.seed + numbers.start)
        written = speaker.write([row["prompt"] for row in here], drawn, config.samples)
        return [{**row, "answers": [vars(one) for one in each]} for row, each in zip(here, written, strict=True)]

    return rows_kept(directory / FILE, len(asked), CHUNK, some, "answering prompts")


def pairs(rows: Sequence[Mapping[str, Any]], config: Answering, seed: int) -> tuple[list[Compared], dict[str, int]]:
    """Pairs of different answers to one prompt, and how many answers and pairs could not be compared."""
    found: list[Compared] = []
    counts = {"empty answers": 0, "unfinished answers": 0, "identical pairs": 0}
    for group, row in enumerate(rows):
        answers = row["answers"]
        counts["empty answers"] += sum(not one["text"] for one in answers)
        counts["unfinished answers"] += sum(one["reason"] == "length" for one in answers)
        usable = [a["text"] for a in answers if a["text"] and (a["reason"] != "length" or config.unfinished == "keep")]
        every = list(combinations(usable, 2))
        different = list(dict.fromkeys((one, other) for one, other in every if one != other))
        counts["identical pairs"] += len(every) - len(different)
        chosen = np.random.default_rng((seed, group, 2)).permutation(len(different))[: config.pairs or None]
        for at in sorted(chosen.tolist()):
            found.append(Compared(row["prompt"], *different[at], number=len(found), group=group))
    if not found:
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        raise Fault(
            f"no two different answers to one of {len(rows)} prompts ({told or 'one answer each'}); raise "
            "answering.samples or answering.sampling.temperature"
        )
    return found, counts


def completed(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The first answers to prompts as rows to be tuned on, those that say nothing left out."""
    first = [(row["prompt"], row["answers"][0]["text"]) for row in rows]
    return [{"prompt": prompt, "completion": text} for prompt, text in first if text]
