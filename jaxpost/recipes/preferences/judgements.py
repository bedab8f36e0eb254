# SPDX-License-Identifier: Apache-2.0
"""What a reward model may learn from, as config: which rows, how its scores of their answers are held against what the
rows say, and which pairs of answers measure it."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxpost import losses
from jaxpost.arrays import Array, Batch
from jaxpost.data.batches.packing import MOST
from jaxpost.data.batches.pairs import Handling, Pairs, Rankings
from jaxpost.data.batches.unpaired import Verdicts
from jaxpost.recipes.preferences.answers import halved

RewardUnit = Pairs | Rankings | Verdicts


class Judged(NamedTuple):
    """Losses of whatever counts as one, and what each of them counts (0: it is not there); and of every pair of answers
    that the data tell apart by how much the better one is scored higher, and what it counts. Any shapes."""

    losses: Array
    weight: Array
    margins: Array
    compared: Array


@dataclass(frozen=True)
class BradleyTerry:
    """Of a preference the chosen answer is scored higher: `-log sigmoid(difference)`, less the row's `margin` if it has
    one. `centring` (0.01 is customary) keeps scores about 0; `agreement` takes the share of labellers who agree as the
    probability to be met."""

    centring: float = 0.0
    margin: bool = True
    agreement: bool = False
    classes: ClassVar[int] = 1

    def unit(self, rows: Handling) -> RewardUnit:
        return Pairs(rows, whole=True)

    def judged(self, scores: Array, batch: Batch) -> Judged:
        chosen, rejected = halved(scores, 0), halved(scores, 1)
        margin = batch["margin"] if self.margin else 0.0
        agreement = batch["agreement"] if self.agreement else 1.0
        found = losses.bradley_terry(chosen, rejected, margin=margin, centring=self.centring, agreement=agreement)
        return Judged(found, batch["weight"], chosen - rejected, batch["weight"])


@dataclass(frozen=True)
class Ties:
    """Preferences of which some are ties: those of whom as many were for one answer as for the other. `tie_rate` is the
    chance of a tie between answers that are equally good."""

    kind: Literal["rao_kupper", "davidson"] = "rao_kupper"
    tie_rate: float = 0.2
    classes: ClassVar[int] = 1

    def unit(self, rows: Handling) -> RewardUnit:
        return Pairs(replace(rows, ties="keep"), whole=True)

    def judged(self, scores: Array, batch: Batch) -> Judged:
        chosen, rejected, tied = halved(scores, 0), halved(scores, 1), batch["agreement"] == 0.5
        found = losses.bradley_terry_ties(chosen, rejected, tied, tie_rate=self.tie_rate, kind=self.kind)
        return Judged(found, batch["weight"], chosen - rejected, jnp.where(tied, 0.0, batch["weight"]))


@dataclass(frozen=True)
class Ranked:
    """Rankings: of each prompt all pairs of its answers that the ranking tells apart, the prompt counting once."""

    centring: float = 0.0
    classes: ClassVar[int] = 1

    def unit(self, rows: Handling) -> RewardUnit:
        return Rankings(rows, whole=True)

    def judged(self, scores: Array, batch: Batch) -> Judged:
        groups, given = batch["groups"], batch["scores"]
        same = (groups[:, :, None] == groups[:, None, :]) & (groups > 0)[:, :, None]
        ahead = same & (given[:, :, None] > given[:, None, :])
        ranks = jnp.sum(ahead, axis=1) + 1  # of those of the same prompt, how many are better, and one

        def of_prompt(number: Array) -> tuple[Array, Array]:
            mine = groups == number
            weight = jnp.max(jnp.where(mine, batch["weight"], 0.0), axis=1)
            return losses.rankings(scores, ranks, mine.astype(jnp.float32), centring=self.centring), weight

        found, weight = jax.vmap(of_prompt)(jnp.arange(1, MOST // 2 + 1))
        pairs = ahead.astype(jnp.float32)
        share = pairs / jnp.maximum(jnp.sum(jnp.where(same, jnp.sum(pairs, 2)[:, None], 0.0), 2), 1.0)[:, :, None]
        return Judged(found, weight, scores[:, :, None] - scores[:, None, :], share * batch["weight"][:, :, None])


@dataclass(frozen=True)
class Pointwise:
    """Answers with a score of their own, which is to be met: regression, `squared` or `huber`."""

    kind: Literal["squared", "huber"] = "squared"
    delta: float = 1.0
    classes: ClassVar[int] = 1

    def unit(self, rows: Handling) -> RewardUnit:
        return Rankings(rows, compared=False, whole=True)

    def judged(self, scores: Array, batch: Batch) -> Judged:
        given, groups = batch["scores"], batch["groups"]
        found = losses.pointwise(scores, given, kind=self.kind, delta=self.delta)
        same = (groups[:, :, None] == groups[:, None, :]) & (groups > 0)[:, :, None]
        ahead = same & (given[:, :, None] > given[:, None, :])
        margins = scores[:, :, None] - scores[:, None, :]
        return Judged(found, batch["weight"], margins, ahead * batch["weight"][:, :, None])


@dataclass(frozen=True)
class TwoClass:
    """Single answers called good or bad: a classifier of two classes, whose `reward` as a model of rewards is the good
    one's `logit`, its `log_odds` or its `probability`. The head has two classes."""

    reward: Literal["logit", "log_odds", "probability"] = "log_odds"
    classes: ClassVar[int] = 2

    def unit(self, rows: Handling) -> RewardUnit:
        return Verdicts(rows, mismatched=False, whole=True)

    def judged(self, scores: Array, batch: Batch) -> Judged:
        good = batch["label"] > 0
        found = losses.two_class(scores, good)
        odds = losses.two_class_reward(scores, kind="log_odds")
        return Judged(found, batch["weight"], jnp.where(good, odds, -odds), batch["weight"])


Judgement = BradleyTerry | Ties | Ranked | Pointwise | TwoClass
