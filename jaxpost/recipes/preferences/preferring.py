# SPDX-License-Identifier: Apache-2.0
"""What a run on preferences taught: how held-out answers are told apart, what is answered now, and how good that is."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxpost.arrays import Array, Batch, HostBatch, Tree
from jaxpost.data.rows.judged import Chosen
from jaxpost.data.text import parts_of
from jaxpost.data.tokenizers import Tokenizer, newest
from jaxpost.evals import preferences, rewards, table
from jaxpost.evals.rewards import Answered
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import feed
from jaxpost.recipes.base import Loaded
from jaxpost.recipes.preferences.answers import answers, unreserved
from jaxpost.recipes.review import Reviewing
from jaxpost.recipes.rollouts.prompts import request
from jaxpost.recipes.telling import console, reading
from jaxpost.sample import Sampling, generate
from jaxpost.train.metrics import write_json

FILE = "preferences.json"


@dataclass(frozen=True)
class Shown:
    """A corpus as the review of answers reads it."""

    corpus: Any

    @property
    def columns(self) -> None:
        return None

    def held_out(self, seed: int) -> Chosen:
        return Chosen(self.corpus.held_out(seed), self.corpus.columns)

    def training(self, seed: int) -> Chosen:
        return Chosen(self.corpus.training(seed), self.corpus.columns)


@functools.partial(jax.jit, static_argnames=("model", "hidden"))
def _said(model: Decoder, weights: Tree, batch: Batch, hidden: int) -> tuple[Array, Array]:
    found = answers(model, weights, unreserved(batch, hidden) if hidden else batch)
    return jax.lax.with_sharding_constraint((found.log_probs, found.lengths), P())


class Preferring:
    """The review of one run: measured before its first step and after its last. `config` is that of a recipe with
    `review` and `judges`, `data` its corpus as the config names it."""

    def __init__(self, config: Any, directory: Path, model: Loaded, data: feed.Data, mesh: Mesh):
        self._config, self._directory, self._model, self._data, self._mesh = config, directory, model, data, mesh
        self._judges = {name: rewards.named(name) for name in config.judges}
        self._answers = Reviewing(config.review, Shown(config.data), directory, model.config, model.tokenizer)

    def before(self, weights: Tree) -> None:
        """Measures the model that the run starts from, unless an earlier start of the run did, in the same way."""
        self._answers.before(weights)
        if self._measured() is None:
            found = self._look(weights, self._model.tokenizer, hidden=self._config.delta.virtual)
            if jax.process_index() == 0:
                write_json(self._directory / FILE, {"of": self._of(), "before": found})

    def after(self, weights: Tree, tokenizer: Tokenizer) -> None:
        """Measures again, writes the table, the answers and the report, and shows them."""
        now = self._look(weights, tokenizer, hidden=0)
        before = self._measured() or {}
        rows = tuple(
            table.Row(group, cluster, name, metric, before[name][-1], *now[name][-1:], count)
            for name, (group, cluster, metric, count, _) in now.items()
            if name in before
        )
        if jax.process_index() == 0 and rows:
            evaluation = table.Evaluation(rows)
            evaluation.save(self._directory)
            write_json(self._directory / FILE, {"of": self._of(), "before": before, "after": now})
            console().print(table.render(evaluation, tasks=True))
        self._answers.after(weights, tokenizer)

    def _look(self, weights: Tree, tokenizer: Tokenizer, hidden: int) -> dict[str, tuple[str, str, str, int, float]]:
        if not self._config.review.examples:
            return {}
        told = reading(lambda: self._told(weights, hidden), "measuring held-out answers")
        found = {
            name: ("held-out rows", "told apart", "log-probability", count, score)
            for name, (score, count) in told.items()
        }
        if self._judges:
            scores = reading(lambda: self._judged(weights, tokenizer), "judging answers")
            found |= {
                name: ("held-out rows", "answers", name, len(given), float(np.mean(given)))
                for name, given in scores.items()
                if given
            }
        return found

    def _told(self, weights: Tree, hidden: int) -> dict[str, tuple[float, int]]:
        """How often the better answer is likelier, as a whole and by the token, with how many times it was asked."""
        batches: list[tuple[HostBatch, np.ndarray, np.ndarray]] = []
        count, loader = 0, self._data.held_out()
        while count < self._config.review.examples:
            try:
                batch = loader.next()
            except StopIteration:
                break
            # What is said of all rows, and which of them there are, must be that of all processes.
            placed = feed.place(batch, self._mesh)
            sums, lengths = _said(self._model.config, weights, placed, hidden)
            whole = {name: np.asarray(_everywhere(placed[name])) for name in ("weight", "label") if name in batch}
            batches.append((whole, np.asarray(sums), np.asarray(lengths)))
            count += int((whole["weight"] > 0).sum())
        return preferences.told_apart(batches)

    def _judged(self, weights: Tree, tokenizer: Tokenizer) -> dict[str, list[float]]:
        """What each judge says of an answer to each of the first held-out prompts, drawn at temperature 1."""
        review, model = self._config.review, self._model
        rows, columns = self._config.data.held_out(self._config.train.seed), self._config.data.columns
        numbers = range(min(review.examples, len(rows)))
        asked = [request(rows[i], tokenizer, columns) for i in numbers]
        known = [parts_of(Chosen(rows, columns)[i], None, tokenizer.template)[-1].text for i in numbers]
        longest = max((len(tokenizer.encode(text)) for text in known), default=1)
        sampling = Sampling(max_new=min(model.config.max_length // 2, 2 * longest + 1), temperature=1.0)
        room = model.config.max_length - sampling.max_new
        prompts = [np.asarray(one.ids)[newest(one.ids, room, tokenizer.bos)].tolist() for one in asked]
        done = generate(model.config, weights, prompts, sampling, ends=tokenizer.ends, slots=review.rows)
        found: dict[str, list[float]] = {name: [] for name in self._judges}
        for one, completion in zip(asked, done, strict=True):
            said = tokenizer.decode(completion.tokens).strip()
            answered = Answered(one.text, said, one.row, len(completion.log_probs), completion.reason)
            for name, judge in self._judges.items():
                scored = rewards.checked(judge(answered))
                if scored.wrong:
                    raise Fault(f"judges: {name} gave {scored.wrong} for {said[:40]!r}; it must give a number or None")
                if scored.score is not None:
                    found[name].append(scored.score)
        return found

    def _of(self) -> dict[str, Any]:
        """What two measurements must have in common to be compared."""
        return {"examples": self._config.review.examples, "judges": list(self._judges)}

    def _measured(self) -> Any:
        try:
            found = json.loads((self._directory / FILE).read_text(encoding="utf-8"))
            return found["before"] if found["of"] == self._of() else None
        except (OSError, ValueError, LookupError, TypeError):  # not there, or damaged
            return None


@jax.jit
def _everywhere(x: Array) -> Array:
    return jax.lax.with_sharding_constraint(x, P())
