# SPDX-License-Identifier: Apache-2.0
"""Answers that a model criticises and revises itself, by written principles (Bai et al. 2022,
https://arxiv.org/abs/2212.08073, section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxpost.data import principles
from jaxpost.data.principles import Principle, Wording, ordered, plain, wording
from jaxpost.faults import Fault
from jaxpost.recipes.feedback.asking import Speaks
from jaxpost.recipes.feedback.stages import Row, rows_kept
from jaxpost.sample import Sampling

CHUNK = 64  # prompts whose answers are revised before they are kept
FILE = "revisions.jsonl"


@dataclass(frozen=True)
class Revising:
    """How answers are revised. Files are named by path, or by the built-in set (general, nano) they are in.

    rounds: how often an answer is revised, each time by another of the principles, drawn for the prompt (all of them
    come before one comes again). critique, revision: how the model is asked; without a critique (empty) it revises
    directly. examples: solved ones, before each question. learn: which revisions are tuned on, the last of each prompt
    or all.
    """

    principles: str = "general"
    critique: str = "general"
    critique_examples: str = ""
    revision: str = "general"
    revision_examples: str = ""
    rounds: int = 4
    learn: Literal["last", "all"] = "last"
    sampling: Sampling = Sampling(max_new=256, temperature=1.0)
    seed: int = 0


@dataclass(frozen=True)
class Editor:
    """The files of a revision, read and checked."""

    config: Revising
    principles: tuple[Principle, ...]
    critique: Wording | None
    revision: Wording


def editor(config: Revising) -> Editor:
    """The files. Raises `Fault` for one that is missing, empty or asks for what there is not, before any model is
    read."""
    if config.rounds < 1:
        raise Fault(f"revising.rounds is {config.rounds}; an answer is revised at least once")
    known = principles.read(config.principles, ("critique", "revision") if config.critique else ("revision",))
    critique = wording("critique", config.critique, config.critique_examples) if config.critique else None
    revision = wording("revision" if critique else "direct_revision", config.revision, config.revision_examples)
    return Editor(config, known, critique, revision)


def revised(made: Editor, speaker: Speaks, asked: Sequence[Row], directory: Path) -> list[dict[str, Any]]:
    """The rows (of a `prompt`, and whatever else) with the model's `draft` and the `rounds` of its revision, each with
    its principle, the critique and the revision. One that says nothing leaves the answer as it was. All of it is kept
    in `revisions.jsonl` as soon as it is written."""

    def some(numbers: range) -> list[Row]:
        here = [asked[i] for i in numbers]
        drawn = [ordered(made.principles, made.config.seed, i) for i in numbers]
        step = 1 + 2 * made.config.rounds  # as many seeds as there are questions
        sampling = replace(made.config.sampling, seed=made.config.sampling.seed + step * numbers.start)
        drafts = [draft.text for (draft,) in speaker.write([row["prompt"] for row in here], sampling)]
        latest, rounds = drafts, [[] for _ in here]
        for number in range(made.config.rounds):
            by = [principles[number % len(principles)] for principles in drawn]
            told = _round(made, speaker, here, latest, by, replace(sampling, seed=sampling.seed + 1 + 2 * number))
            for history, one in zip(rounds, told, strict=True):
                history.append(one)
            latest = [one["revision"] or before for one, before in zip(told, latest, strict=True)]
        return [
            {**row, "draft": draft, "rounds": history, "revision": last}
            for row, draft, history, last in zip(here, drafts, rounds, latest, strict=True)
        ]

    return rows_kept(directory / FILE, len(asked), CHUNK, some, "criticising and revising answers")


def _round(
    made: Editor, speaker: Speaks, asked: Sequence[Row], answers: Sequence[str], by: Sequence[Principle], sampling: Any
) -> list[dict[str, str]]:
    shown = [{"prompt": plain(row["prompt"]), "answer": answer} for row, answer in zip(asked, answers, strict=True)]
    told: list[dict[str, str]] = [{"principle": one.name} for one in by]
    if (critique := made.critique) is not None:
        questions = [critique(**one, request=p.critique) for one, p in zip(shown, by, strict=True)]
        for one, place, (said,) in zip(told, shown, speaker.write(questions, sampling), strict=True):
            one["critique"] = place["critique"] = said.text
    questions = [made.revision(**one, request=p.revision) for one, p in zip(shown, by, strict=True)]
    for one, (said,) in zip(told, speaker.write(questions, replace(sampling, seed=sampling.seed + 1)), strict=True):
        one["revision"] = said.text
    return told


def learnable(rows: Sequence[Mapping[str, Any]], config: Revising) -> tuple[list[Row], dict[str, int]]:
    """What is tuned on, rows of `prompt` and `completion`; and how many revisions said nothing or changed nothing."""
    found: list[Row] = []
    counts = {"revisions": 0, "empty revisions": 0, "unchanged revisions": 0}
    for row in rows:
        before, last = row["draft"], len(row["rounds"]) - 1
        for number, one in enumerate(row["rounds"]):
            said = one["revision"]
            counts["empty revisions"] += not said
            counts["unchanged revisions"] += bool(said) and said == before
            before = said or before
            if before and (config.learn == "all" or number == last):
                found.append({"prompt": row["prompt"], "completion": before})
    counts["revisions"] = len(found)
    if not found:
        raise Fault(f"not one of {len(rows)} answers could be revised: the model wrote nothing; see {FILE} in the run")
    return found, counts


def after(rows: Sequence[Mapping[str, Any]], number: int) -> list[str]:
    """The answers as they are after round `number`, counted from 0."""
    said = ([row["draft"], *(one["revision"] for one in row["rounds"][: number + 1])] for row in rows)
    return [next(text for text in reversed(each) if text or text is each[0]) for each in said]
