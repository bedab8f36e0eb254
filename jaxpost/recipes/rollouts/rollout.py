# SPDX-License-Identifier: Apache-2.0
"""Batches that the model makes itself: prompts, its own answers to them, and what those are rewarded with.

A row holds one prompt and one answer. `tokens`, `segments` and `positions` are `[b, p + r]`, as everywhere. What is
said of the answer's tokens stands in coordinates of the answer, `[b, r]`: `answers` are its tokens, the end token
included, `mask` is 1 at them, and `sampler_log_probs` are their log-probabilities when they were drawn. `start [b]` is
the place of the prompt's last token, from which the answer's first is predicted; `group [b]` numbers the prompts of the
batch, `ended [b]` says whether the answer came to its end. `scores [b, k]` are its rewards by source, NaN where one
does not apply, and `reward [b]` what they come to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpost import delta
from jaxpost.arrays import HostBatch, Tree
from jaxpost.data.batches.loader import Batch as Rows
from jaxpost.data.batches.loader import BatchSource, Loader
from jaxpost.data.batches.packing import Overlong
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.evals.rewards import Answered
from jaxpost.faults import Fault
from jaxpost.kernels.decode_attention import KV
from jaxpost.models.decoder import Decoder
from jaxpost.recipes.feed import Fact, place
from jaxpost.recipes.rollouts.prompts import Prompts, Request
from jaxpost.recipes.rollouts.scoring import Scoring, describe
from jaxpost.sample import Completion, Sampling, generate, merged
from jaxpost.train.state import State

GIVEN = ("tokens", "segments", "positions", "start", "answers", "mask", "sampler_log_probs", "ended")
"""What is known of a rollout before anything is made of it."""
MIXED = "mixed/"
"""Before the names of rows that are learned from beside the rollout, as text is: as many rows as the rollout has."""


@dataclass(frozen=True)
class Rollout:
    """How answers are sampled: of every step `prompts` prompts of at most `prompt_tokens` tokens, `samples` answers to
    each of at most `answer_tokens`. `overlong` is what becomes of longer prompts. `slots` is how many answers are
    written at once (0: all of them); `merged` samples from a folded copy of the weights, which is faster where memory
    allows it; `kv` is how keys and values are stored meanwhile (`Sampling`). An answer that does not end by itself gets
    `unended` added to its reward, or with `mask_unended` teaches nothing. `varied` draws other prompts, up to `tries`
    times, for those whose answers are all rewarded alike.
    """

    prompts: int = 16
    samples: int = 4
    prompt_tokens: int = 128
    answer_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    overlong: Overlong = "drop"
    slots: int = 0
    merged: bool = False
    kv: KV = "model"
    unended: float = 0.0
    mask_unended: bool = False
    varied: bool = False
    tries: int = 3

    def __post_init__(self) -> None:
        least = dict.fromkeys(("prompts", "samples", "prompt_tokens", "answer_tokens", "tries"), 1)
        for name, number in {**least, "slots": 0, "top_k": 0}.items():
            if getattr(self, name) < number:
                raise Fault(f"rollout.{name} is {getattr(self, name)}; it must be at least {number}")
        if not 0 < self.top_p <= 1:
            raise Fault(f"rollout.top_p is {self.top_p}; it must be above 0 and at most 1")
        if not self.temperature > 0:
            raise Fault(
                f"rollout.temperature is {self.temperature}; a policy that learns from its own answers must draw"
            )

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    def sampling(self, seed: int) -> Sampling:
        return Sampling(self.answer_tokens, self.temperature, self.top_k, self.top_p, seed, self.kv)


@dataclass
class Rollouts:
    """A `Feed` of rollouts. The programs `observe` (of a policy over a batch: what to add to it) and `score/<name>` are
    the recipe's; `held` gives the held-out prompts, from the first. Rows of the loader `mixed` come with every rollout,
    as many as it has."""

    rollout: Rollout
    model: Decoder
    tokenizer: Tokenizer
    prompts: Prompts
    held: Callable[[], Prompts]
    scoring: Scoring
    judges: Mapping[str, Tree]
    seed: int
    steps: int
    updates: int
    eval_batches: int
    until: float | None = None
    mixed: Loader | None = None
    shows: str = "reward"
    waits: str = "sampling"
    step: int = 0
    reached: float = -np.inf
    counts: dict[str, int] = field(default_factory=lambda: {"answers": 0, "ended": 0, "tokens": 0, "alike": 0})

    @property
    def places(self) -> int:
        return self.rollout.rows * self.rollout.length

    @property
    def length(self) -> int:
        return self.rollout.length

    @property
    def source(self) -> BatchSource:
        return self

    def begin(self, frozen: Tree, programs: Mapping[str, Any], mesh: Mesh) -> None:
        if jax.process_count() > 1:
            raise Fault("answers are sampled by one process so far; start this run on one host")
        self._frozen, self._programs, self._mesh = frozen, programs, mesh

    def next(self, state: Any = None) -> Rows:
        """The rollout of the policy as it is; StopIteration once the reward is what was wanted. Groups whose rewards do
        not vary are drawn anew where that is asked for; if there are too many of them, they stay, and teach nothing."""
        if self.until is not None and self.reached >= self.until:
            raise StopIteration
        before = self.save()
        try:
            return self._drawn(state)
        except Fault:
            self.restore(before)  # a run that goes on once that is mended is the same run
            raise

    def _drawn(self, state: Any) -> Rows:
        weights, kept, spare = self._weights(state), [], []
        for attempt in range(self.rollout.tries if self.rollout.varied else 1):
            asked = [self.prompts.next() for _ in range(self.rollout.prompts)]
            batch = self._sampled(weights, asked, self._seed(self.step, attempt), count=True)
            groups = _groups(batch, self.rollout.samples)
            alike = [self.rollout.varied and _alike(group["reward"]) for group in groups]
            kept += [group for group, same in zip(groups, alike, strict=True) if not same]
            spare += [group for group, same in zip(groups, alike, strict=True) if same]
            if len(kept) >= self.rollout.prompts:
                break
        self.counts["alike"] += len(spare)
        chosen = [*kept, *spare][: self.rollout.prompts]
        whole = {name: np.concatenate([group[name] for group in chosen]) for name in chosen[0]}
        whole["group"] = np.repeat(np.arange(self.rollout.prompts, dtype=np.int32), self.rollout.samples)
        self.step += 1
        if np.isfinite(whole["reward"]).any():
            self.reached = float(np.nanmean(whole["reward"]))
        if self.mixed is not None:
            whole |= {f"{MIXED}{name}": x for name, x in self.mixed.next().items()}
        return {**whole, **self._observed(state, whole)}

    def measure(self, state: State) -> dict[str, float]:
        """Mean rewards, lengths and what else is observed of answers to held-out prompts, always drawn alike."""
        measured: list[HostBatch] = []
        weights, held, counts = self._weights(state), self.held(), dict(self.scoring.counts)
        for number in range(self.eval_batches):
            asked = list(islice(held, self.rollout.prompts))
            if not asked:
                break
            short = self.rollout.prompts - len(asked)
            batch = self._sampled(weights, asked + asked[:1] * short, self._seed(number, -1))
            batch = {**batch, **self._observed(state, batch)}
            measured.append({name: x[: len(asked) * self.rollout.samples] for name, x in batch.items()})
        self.scoring.counts = counts  # those are of what is learned from
        whole = {name: np.concatenate([part[name] for part in measured]) for name in (measured or [{}])[0]}
        return _measured(whole, self.scoring.names) if whole else {}

    def better(self, found: Mapping[str, float]) -> float:
        return -found["reward"]

    def _weights(self, state: State) -> Tree:
        made = delta.role(delta.combine(state.trainable, self._frozen["fixed"]))
        bound = delta.bind(self._frozen["base"], made)
        return merged(self.model, bound) if self.rollout.merged else bound

    def _seed(self, step: int, attempt: int) -> int:
        held_out = attempt < 0
        return int(np.random.SeedSequence([self.seed, step, max(0, attempt), held_out]).generate_state(1)[0] >> 1)

    def _sampled(self, weights: Tree, asked: Sequence[Request], seed: int, count: bool = False) -> HostBatch:
        """Answers to the prompts, `samples` to each, laid out and rewarded."""
        rollout = self.rollout
        written = generate(
            self.model,
            weights,
            [request.ids for request in asked],
            rollout.sampling(seed),
            ends=self.tokenizer.ends,
            samples=rollout.samples,
            slots=rollout.slots or None,
        )
        each = [request for request in asked for _ in range(rollout.samples)]
        batch = lay(each, written, rollout, self.tokenizer.pad)
        placed = place(batch, self._mesh)
        found = {name: self._programs[f"score/{name}"](judge, placed) for name, judge in self.judges.items()}
        answers = [
            Answered(request.text, self.tokenizer.decode(c.tokens), request.row, len(c.tokens), c.reason)
            for request, c in zip(each, written, strict=True)
        ]
        scores = self.scoring.judged(answers, found)
        if count:
            self.counts["answers"] += len(written)
            self.counts["ended"] += int(batch["ended"].sum())
            self.counts["tokens"] += int(batch["mask"].sum())
        return rewarded(batch, scores, self.scoring.weights, rollout)

    def _observed(self, state: State, batch: HostBatch) -> HostBatch:
        if "observe" not in self._programs:
            return {}
        placed = place({name: batch[name] for name in GIVEN}, self._mesh)
        return jax.device_get(self._programs["observe"](state.trainable, self._frozen, placed))

    def facts(self) -> dict[str, Fact]:
        return {
            "prompts read": self.prompts.counts["read"],
            "prompts left out": self.prompts.counts["left out"],
            "prompts truncated": self.prompts.counts["truncated"],
            "answers sampled": self.counts["answers"],
            "answers that ended": self.counts["ended"],
            "tokens sampled": self.counts["tokens"],
            "answers without a score": self.scoring.counts["without a score"],
        }

    def told(self) -> list[str]:
        counts, answers = self.counts, max(1, self.counts["answers"])
        lines = [
            f"{counts['answers']:,} answers of {counts['tokens']:,} tokens; {counts['ended'] / answers:.0%} ended."
        ]
        left, cut = self.prompts.counts["left out"], self.prompts.counts["truncated"]
        if left or cut:
            read = self.prompts.counts["read"]
            lines.append(
                f"Of {read:,} prompts read, some are longer than rollout.prompt_tokens {self.rollout.prompt_tokens}: "
                f"{left:,} left out, {cut:,} truncated to it."
            )
        if without := self.scoring.counts["without a score"]:
            lines.append(f"{without:,} answers had no score and taught nothing.")
        if bad := self.scoring.counts["no numbers"]:
            lines.append(f"Rewards gave NaN or infinity {bad:,} times; those were left out.")
        if self.rollout.varied:
            lines.append(f"The answers to {counts['alike']:,} prompts were all rewarded alike.")
        return lines

    def save(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "reached": None if np.isinf(self.reached) else self.reached,
            "prompts": self.prompts.save(),
            "counts": dict(self.counts),
            "scored": dict(self.scoring.counts),
            "mixed": None if self.mixed is None else self.mixed.save(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.step, self.counts = saved["step"], dict(saved["counts"])
        self.reached = -np.inf if saved["reached"] is None else saved["reached"]
        self.prompts.restore(saved["prompts"])
        self.scoring.counts = dict(saved["scored"])
        if self.mixed is not None:
            self.mixed.restore(saved["mixed"])

    def resume(self, saved: list[dict[str, Any]]) -> None:
        (position,) = saved
        self.restore(position)

    def close(self) -> None: ...


def lay(asked: Sequence[Request], written: Sequence[Completion], rollout: Rollout, pad: int) -> HostBatch:
    """Prompts and answers as the rows of a batch, without what they are rewarded with."""
    rows = len(asked)
    tokens = np.full((rows, rollout.length), pad, np.int32)
    segments, positions = (np.zeros((rows, rollout.length), np.int32) for _ in range(2))
    answers = np.full((rows, rollout.answer_tokens), pad, np.int32)
    mask, drawn = (np.zeros((rows, rollout.answer_tokens), np.float32) for _ in range(2))
    start, ended = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for i, (request, completion) in enumerate(zip(asked, written, strict=True)):
        said = [*completion.tokens, *([] if completion.end is None else [completion.end])]
        prompt, size = len(request.ids), len(request.ids) + len(said)
        tokens[i, :prompt], tokens[i, prompt:size] = request.ids, said
        segments[i, :size], positions[i, :size] = 1, np.arange(size)
        answers[i, : len(said)], mask[i, : len(said)] = said, 1.0
        drawn[i, : len(said)] = completion.log_probs
        start[i], ended[i] = prompt - 1, completion.reason != "length"
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "start": start,
        "answers": answers,
        "mask": mask,
        "sampler_log_probs": drawn,
        "ended": ended,
    }


def rewarded(batch: HostBatch, scores: np.ndarray, weights: np.ndarray, rollout: Rollout) -> HostBatch:
    """The batch with its rewards. An answer that no source applies to, or that may not teach, has a mask of zeros."""
    unscored = np.isnan(scores).all(axis=1)
    reward = np.nansum(scores * weights[None], axis=1).astype(np.float32)
    reward = np.where(batch["ended"] > 0, reward, reward + rollout.unended)
    silent = unscored | ((batch["ended"] == 0) & rollout.mask_unended)
    return {
        **batch,
        "mask": np.where(silent[:, None], 0.0, batch["mask"]).astype(np.float32),
        "scores": scores,
        "reward": np.where(unscored, np.nan, reward).astype(np.float32),
    }


def _groups(batch: HostBatch, samples: int) -> list[HostBatch]:
    count = len(batch["reward"]) // samples
    return [{name: x[i * samples : (i + 1) * samples] for name, x in batch.items()} for i in range(count)]


def _alike(rewards: np.ndarray) -> bool:
    """Whether a group teaches nothing: its answers are rewarded alike, or less than two have a reward."""
    known = rewards[np.isfinite(rewards)]
    return len(known) < 2 or bool(known.max() == known.min())


def _measured(batch: HostBatch, names: Sequence[str]) -> dict[str, float]:
    lengths = (batch["segments"] > 0).sum(axis=1) - 1 - batch["start"]
    found = {"reward": float(np.nanmean(batch["reward"])) if np.isfinite(batch["reward"]).any() else np.nan}
    found |= {f"reward/{name}": value for name, value in describe(batch["scores"], names).items()}
    found |= {"length": float(lengths.mean()), "ended": float(batch["ended"].mean())}
    if "reference_log_probs" in batch:
        differences = (batch["log_probs"] - batch["reference_log_probs"]) * batch["mask"]
        found["kl"] = float(differences.sum(axis=1).mean())
    return found
