# SPDX-License-Identifier: Apache-2.0
"""What a run taught, as its user sees it: scores before and after, a few answers, the report, what to try next."""

import itertools
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from jaxpost.arrays import HostBatch, Tree
from jaxpost.data.batches.loader import Loader
from jaxpost.data.parts import Part, prompt_of
from jaxpost.data.rows.judged import Chosen
from jaxpost.data.rows.shapes import shape_of
from jaxpost.data.tasks import Example, Task
from jaxpost.data.text import parts_of
from jaxpost.data.tokenizers import Tokenizer, Tokens, check_ids, newest, prompt_ids
from jaxpost.evals import report, table, text
from jaxpost.evals.rank import question, rank
from jaxpost.evals.score import Scorer, token_stats
from jaxpost.models.decoder import Decoder
from jaxpost.recipes.corpus import Corpus, Tasks
from jaxpost.recipes.rollouts.prompts import request
from jaxpost.sample import Sampling, generate
from jaxpost.train.metrics import write_json
from jaxpost.train.progress import status

PROMPTED = ("prompt", "preference", "unpaired", "ranking")
BEFORE, GENERATIONS = "before.json", "generations.json"


@dataclass(frozen=True)
class Review:
    """How much is measured before and after: examples of every task (0: no table), prompts whose answers are shown,
    rows of a batch. Answers may be half as long again as the longest target."""

    examples: int = 16
    generations: int = 3
    rows: int = 32


@dataclass(frozen=True)
class Suite:
    """Some examples of one task, none of them trained on, in one group of the table."""

    group: str
    task: Task
    examples: tuple[Example, ...]


def suites(corpus: Corpus, examples: int) -> tuple[Suite, ...]:
    """Trained tasks, tasks held out and clusters held out, their test rows worded by every template in turn. Corpora
    without tasks have none: what is measured of them is the loss on held-out rows."""
    if not isinstance(corpus, Tasks) or not examples:
        return ()
    return tuple(
        Suite(group, task, tuple(_straight(task, examples)))
        for group, tasks in zip(table.GROUPS, corpus.division(), strict=True)
        for task in tasks
    )


def measure(
    parts: Sequence[Suite], config: Decoder, tokenizer: Tokenizer, weights: Tree, rows: int
) -> tuple[dict[str, float], list[str]]:
    """The score of every task, and what has to be said beside them. Closed answers by their length-normalised
    likelihood, free ones by what the model writes."""
    scorer = Scorer(config, rows, min(1024, config.max_length), tokenizer.pad)
    closed = [part for part in parts if part.task.metric == "rank"]
    free = [part for part in parts if part.task.metric != "rank"]
    notes = []
    if (missing := text.rouge_missing()) and any(part.task.metric == "rouge" for part in free):
        left = [part.task.name for part in free if part.task.metric == "rouge"]
        free = [part for part in free if part.task.metric != "rouge"]
        notes.append(f"Left out: {', '.join(left)}. {missing}")
    scores: dict[str, float] = {}
    if closed:
        questions = [question(tokenizer, example) for part in closed for example in part.examples]
        ranking = rank(questions, scorer.over(weights))
        if ranking.cut:
            notes.append(f"{ranking.cut} prompts were longer than {scorer.limit} tokens and lost their beginning.")
        right = [c.normalised == q.answer for c, q in zip(ranking.choices, questions, strict=True)]
        for part, hits in zip(closed, _split(right, closed), strict=True):
            scores[part.task.name] = sum(hits) / len(hits)
    wanted = [example for part in free for example in part.examples]
    answers = answer(wanted, config, tokenizer, weights, rows)
    for part, written in zip(free, _split(answers, free), strict=True):
        judge = text.exact if part.task.metric == "exact" else lambda a, t: text.rouge(a, t)["rougeL"]
        judged = [judge(a, example.target) for a, example in zip(written, part.examples, strict=True)]
        scores[part.task.name] = sum(judged) / len(judged)
    return scores, notes


def predictions(config: Any, model: Decoder, tokenizer: Tokenizer, weights: Tree, rows: int) -> str:
    """How well a model predicts the trained tokens of a run's held-out rows, in one line."""
    kept, batches, columns = config.data.held_out(config.train.seed), config.batches, config.data.columns
    if isinstance(kept[0], Mapping) and shape_of(kept[0], columns) in PROMPTED[1:]:
        kept, columns = Chosen(kept, columns), None
    loader = Loader(
        kept,
        tokenizer,
        min(rows, len(kept), 32),
        batches.seq_len,
        epochs=1,
        seed=None,
        train_on=batches.train_on,
        columns=columns,
    )
    drawn = itertools.islice(_until_its_end(loader), max(1, rows // 32))
    stats = token_stats(model, weights, drawn, most=1)
    return (
        f"loss {stats.loss:.4f}  perplexity {stats.perplexity:.2f}  token accuracy {100 * stats.accuracy:.1f} %  "
        f"({stats.count:,} tokens)"
    )


def compared(parts: Sequence[Suite], before: Mapping[str, float], after: Mapping[str, float]) -> tuple[table.Row, ...]:
    """The rows of the table, of the tasks that have a score."""
    return tuple(
        table.Row(
            part.group,
            part.task.cluster,
            part.task.name,
            part.task.metric,
            before.get(part.task.name, math.nan),
            after[part.task.name],
            len(part.examples),
        )
        for part in parts
        if part.task.name in after
    )


def answer(
    examples: Sequence[Example], config: Decoder, tokenizer: Tokenizer, weights: Tree, rows: int, least: int = 0
) -> list[str]:
    """What the model writes for each prompt, greedily, up to its end token. Prompts of similar length share a batch.
    There is room for answers half as long again as the longest target, and for `least` tokens."""
    if not examples:
        return []
    longest = max(len(tokenizer.encode(example.target)) for example in examples)
    sampling = Sampling(max_new=min(config.max_length // 2, max(least, math.ceil(1.5 * longest) + 1)))
    room = config.max_length - sampling.max_new
    whole = [np.asarray(prompt_ids(tokenizer, example.prompt), np.int32) for example in examples]
    prompts = [ids[newest(ids, room)].tolist() for ids in whole]
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    answers = [""] * len(examples)
    for at in range(0, len(order), rows):
        group = order[at : at + rows]
        done = generate(config, weights, [prompts[i] for i in group], sampling, ends=tokenizer.ends)
        for i, completion in zip(group, done, strict=True):
            answers[i] = tokenizer.decode(completion.tokens).strip()
    return answers


class Reviewing:
    """The review of one run: measured before its first step and after its last."""

    def __init__(
        self, review: Review, corpus: Corpus, directory: Path, config: Decoder, tokenizer: Tokenizer, least: int = 0
    ):
        """`least` is how many tokens an answer may have at least, for prompts that come without one."""
        self._least = least
        self._review, self._directory, self._config, self._tokenizer = review, directory, config, tokenizer
        self._parts = suites(corpus, review.examples)
        self._samples = self._chosen(corpus)
        self._console = Console(quiet=jax.process_index() > 0, highlight=False)

    def before(self, weights: Tree) -> None:
        """Measures the model that the run starts from, unless an earlier start of the run did, in the same way."""
        if self._measured() is None:
            with status("measuring the model before training", self._console):
                found = self._look(weights, self._tokenizer)
            self._write(BEFORE, found)

    def after(self, weights: Tree, tokenizer: Tokenizer) -> None:
        """Measures again, writes the table, the answers and the report, and shows them. The tokenizer is the run's,
        with the places that it reserves in every prompt."""
        with status("measuring the model after training", self._console):
            now = self._look(weights, tokenizer)
        before = self._measured() or {"scores": {}, "answers": [""] * len(self._samples)}
        rows = compared(self._parts, before["scores"], now["scores"])
        samples = [
            {"prompt": example.prompt, "target": example.target, "before": old, "after": new}
            | {"task": example.task, "cluster": example.cluster}
            for example, old, new in zip(self._samples, before["answers"], now["answers"], strict=True)
        ]
        self._write(GENERATIONS, samples)
        evaluation = table.Evaluation(rows, tuple(now["notes"]))
        if jax.process_index() == 0:
            if rows:
                evaluation.save(self._directory)
                self._console.print()
                self._console.print(table.render(evaluation))
            for sample in samples:
                self._console.print()
                self._console.print(_shown(sample))
            page = report.write_report(self._directory)
            self._console.print(self._next(page), soft_wrap=True)  # a command must not be broken in two

    def _look(self, weights: Tree, tokenizer: Tokenizer) -> dict[str, Any]:
        scores, notes = measure(self._parts, self._config, tokenizer, weights, self._review.rows)
        answers = answer(self._samples, self._config, tokenizer, weights, self._review.rows, self._least)
        return {"of": self._of(), "scores": scores, "notes": notes, "answers": answers}

    def _of(self) -> dict[str, Any]:
        """What two measurements must have in common to be compared."""
        return {"examples": self._review.examples, "prompts": [example.prompt for example in self._samples]}

    def _chosen(self, corpus: Corpus) -> tuple[Example, ...]:
        """A few prompts: from every group of tasks in turn, or the first held-out rows."""
        count = self._review.generations
        if self._parts:
            free = [part for part in self._parts if part.task.metric != "rank"] or list(self._parts)
            count = min(count, len(free))
            spread = [free[i * len(free) // count] for i in range(count)]
            return tuple(part.examples[0] for part in spread)
        rows = corpus.held_out(0)
        return tuple(self._sample(rows[i], corpus) for i in range(min(count, len(rows))))

    def _sample(self, row: Any, corpus: Corpus) -> Example:
        """A row as a prompt and the answer to it, the first of several; of plain text, the beginning and how it goes
        on; of what is compared or to be answered, the prompt."""
        if not isinstance(row, Tokens | Example) and shape_of(row, corpus.columns) in PROMPTED:
            asked = request(row, self._tokenizer, corpus.columns)
            return Example(asked.text, str(asked.row.get("answer", "")))
        if isinstance(row, Tokens):
            pieces = [Part(self._tokenizer.decode(check_ids(self._tokenizer, row, "a row").ids[:64]), True)]
        else:
            pieces = parts_of(row, corpus.columns, self._tokenizer.template)
        split = next((i for i, part in enumerate(pieces) if part.trained), 0)
        end = next((i for i in range(split + 1, len(pieces)) if not pieces[i].trained), len(pieces))
        prompt, target = (prompt_of(some) for some in (pieces[:split], pieces[split:end]))
        half = len(target) // 2
        return Example(prompt, target) if prompt else Example(target[:half], target[half:])

    def _next(self, page: Path) -> Text:
        run, jaxpost = shlex.quote(str(self._directory)), _command()
        return Text(
            f"\nrun     {self._directory}\nreport  {page}\n\nwhat to try next\n"
            f"  {jaxpost} chat {run}\n"
            f'  {jaxpost} generate {run} --prompt "What is 3 plus 4?"\n'
            f"  {jaxpost} eval {run} --examples 50\n"
            f"  {jaxpost} export {run} --to hf OUT    (merged; --to peft: what was trained, alone)"
        )

    def _write(self, name: str, content: Any) -> None:
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_json(self._directory / name, content)

    def _measured(self) -> Any:
        try:
            found = json.loads((self._directory / BEFORE).read_text(encoding="utf-8"))
            return found if found["of"] == self._of() else None
        except (OSError, ValueError, LookupError, TypeError):  # not there, or damaged
            return None


def _straight(task: Task, count: int) -> Iterator[Example]:
    rows = task.source("test")
    words = [i for i, template in enumerate(task.templates) if not template.turned]
    for i in range(min(count, len(rows))):
        yield task.render(rows[i], words[i % len(words)])


def _split(items: Sequence[Any], parts: Sequence[Suite]) -> list[Sequence[Any]]:
    ends = np.cumsum([len(part.examples) for part in parts])
    return [items[end - len(part.examples) : end] for end, part in zip(ends, parts, strict=True)]


def _command() -> str:
    """How the command line is called from here, be its folder on the PATH or not."""
    called = Path(sys.argv[0])
    if called.name != "jaxpost":
        return "python -m jaxpost.cli"
    return "jaxpost" if shutil.which("jaxpost") else shlex.quote(os.path.relpath(called))


def _shown(sample: dict[str, str]) -> Text:
    shown = Text(sample["prompt"].strip() + "\n")
    for name, style in (("target", "dim"), ("before", "red"), ("after", "green")):
        shown.append(f"  {name:<7}", "dim").append(f"{sample[name]}\n", style)
    return shown


def _until_its_end(loader: Loader) -> Iterator[HostBatch]:
    with suppress(StopIteration):
        while True:
            yield loader.next()
