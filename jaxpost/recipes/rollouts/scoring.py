# SPDX-License-Identifier: Apache-2.0
"""What answers are rewarded for: plain Python functions, reward models over the same base, or several weighted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpost.arrays import Array, Batch, Tree
from jaxpost.evals import rewards
from jaxpost.evals.rewards import Answered
from jaxpost.faults import Fault
from jaxpost.models import heads
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import trained
from jaxpost.recipes.base import Loaded, Model
from jaxpost.recipes.likelihood import gathered, hidden_states


@dataclass(frozen=True)
class Function:
    """A reward that a function computes: a built-in one (`exact`, `number`, `pattern:<regex>`, `length:<tokens>`, ...,
    `jaxpost.evals.rewards`), or one's own, `path.py:function`, which gets an `Answered` and gives a number, or None
    where it does not apply."""

    of: str
    weight: float = 1.0
    name: str = ""


@dataclass(frozen=True)
class RewardModel:
    """A run of the recipe `reward` over the same base: its delta and head are laid over the arrays that are there
    already."""

    run: str
    weight: float = 1.0
    name: str = ""
    best: bool = False


Reward = Function | RewardModel
Unscored = Literal["leave_out", "error"]


@dataclass
class Scoring:
    """Scores of answers by every source. `counts` says how often one gave None or no number: then it has no part in
    the answer's reward, and an answer that none applies to is left out (or, by `unscored`, is an error)."""

    sources: tuple[Reward, ...]
    unscored: Unscored = "leave_out"
    counts: dict[str, int] = field(default_factory=lambda: {"scored": 0, "without a score": 0, "no numbers": 0})

    def __post_init__(self) -> None:
        if not self.sources:
            raise Fault("rewards is empty: name what answers are rewarded for, such as Function('exact')")
        self.names = names(self.sources)
        self._functions = {
            name: rewards.named(source.of)
            for name, source in zip(self.names, self.sources, strict=True)
            if isinstance(source, Function)
        }

    @property
    def models(self) -> dict[str, RewardModel]:
        """The rewards that a model computes, by name."""
        named = zip(self.names, self.sources, strict=True)
        return {name: source for name, source in named if isinstance(source, RewardModel)}

    def judged(self, answers: Sequence[Answered], found: Mapping[str, Array]) -> np.ndarray:
        """Scores `[b, k]` by each of the sources, NaN where one does not apply; `found` are those of models."""
        scores = np.full((len(answers), len(self.sources)), np.nan, np.float32)
        for k, name in enumerate(self.names):
            if name in found:
                scores[:, k] = np.asarray(found[name])[: len(answers)]
                self.counts["no numbers"] += int(np.isnan(scores[:, k]).sum())
            else:
                with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and counted so
                    scores[:, k] = [self._by(name, answer) for answer in answers]
        self.counts["scored"] += len(answers)
        self.counts["no numbers"] += int(np.isinf(scores).sum())
        scores = np.where(np.isfinite(scores), scores, np.nan)
        without = np.isnan(scores).all(axis=1)
        self.counts["without a score"] += int(without.sum())
        if without.any() and self.unscored == "error":
            answer = f"{answers[int(without.argmax())].text!r:.80}"
            raise Fault(
                f"no reward ({', '.join(self.names)}) has a number for the answer {answer}; "
                "mend the function, or set unscored to leave_out"
            )
        return scores

    def _by(self, name: str, answer: Answered) -> float:
        given = self._functions[name](answer)
        score, wrong = rewards.checked(given)
        if wrong == "no number":
            raise Fault(f"the reward {name} gave {given!r} for an answer; it must give a number or None")
        self.counts["no numbers"] += bool(wrong)
        return np.nan if score is None else score

    @property
    def weights(self) -> np.ndarray:
        return np.array([source.weight for source in self.sources], np.float32)


def names(sources: Sequence[Reward]) -> tuple[str, ...]:
    """What the sources are called, each by another name."""
    found = tuple(source.name or _name(source) for source in sources)
    if twice := {name for name in found if found.count(name) > 1}:
        raise Fault(f"two rewards are called {min(twice)!r}; give them names")
    return found


def loaded(scoring: Scoring, plain: Loaded, model: Model, mesh: Mesh) -> dict[str, Tree]:
    """The weights of every reward model, bound to the base's own arrays."""
    found = {name: trained.role(one.run, plain, model, mesh, one.best) for name, one in scoring.models.items()}
    for name, weights in found.items():
        head = weights["heads"]["classes"]
        if head is None or head.shape[-1] != 1:
            run = scoring.models[name].run
            raise Fault(f"{run} has no head of one class, so it is no reward model; name a run of the recipe reward")
    return found


def model_scores(model: Decoder, weights: Tree, batch: Batch) -> Array:
    """A reward model's score of every answer `[b]`: that at its last token, the end token if there is one."""
    scores = heads.score(model, weights, hidden_states(model, weights, batch, most=1))
    last = batch["start"] + jnp.sum(batch["mask"], axis=1).astype(jnp.int32)
    return gathered(scores, last, 1)[:, 0]


def _name(source: Reward) -> str:
    """What it is called where nothing is said: the function without its options, the run's directory."""
    if isinstance(source, RewardModel):
        return source.run.rstrip("/").rpartition("/")[2]
    of, _, option = source.of.partition(":")
    return option if of.endswith(".py") else of


def describe(scores: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The mean of each source's scores, of those that apply."""
    return {name: float(np.nanmean(scores[:, k])) if np.isfinite(scores[:, k]).any() else np.nan
            for k, name in enumerate(names)}  # fmt: skip
