# SPDX-License-Identifier: Apache-2.0
"""What pairs of answers may be optimised for, as config: each a loss of `jaxpost.losses` with its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp

from jaxpost import losses
from jaxpost.arrays import Array
from jaxpost.recipes.preferences.answers import Answers

Nll = Literal["answer", "token"]
"""How the chosen answer's likelihood counts: every answer the same, a mean over its tokens each; or every token of the
batch the same, as in TRL."""


class Compared(NamedTuple):
    """Pairs, `[b, p]` each: what policy and reference say of the two answers (zeros, where no reference is asked),
    which pairs there are, and how many tokens a chosen answer of the whole batch has in the mean."""

    chosen: Answers
    rejected: Answers
    reference_chosen: Array
    reference_rejected: Array
    mask: Array
    chosen_length: Array

    def nll(self, by: Nll) -> Array:
        lengths = self.chosen.lengths if by == "answer" else self.chosen_length
        return -self.chosen.log_probs / jnp.maximum(lengths, 1.0)


@dataclass(frozen=True)
class Objective:
    """A loss of pairs, and the implicit reward of an answer that accuracy and margin are told by. `refers`: it needs a
    reference. `coupled`: a pair's loss depends on the batch, which must then not be cut. `beyond`: what tokens beyond
    the shorter answer's length count. `squares`: it needs what `losses.wpo_weights` asks for."""

    @property
    def refers(self) -> bool:
        return False

    @property
    def coupled(self) -> str:
        """The name of what couples the pairs of a batch; empty if nothing does."""
        return ""

    @property
    def beyond(self) -> float:
        return 1.0

    @property
    def squares(self) -> bool:
        return False

    def losses(self, pairs: Compared) -> Array:
        raise NotImplementedError

    def rewards(self, answers: Answers, reference: Array) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class Dpo(Objective):
    """Direct preference optimisation, of the kinds that `losses.dpo` has: sigmoid, ipo, hinge, exo_pair, nca_pair,
    robust, bco_pair, sppo_hard, aot, apo_zero, discopop, ... `also` adds other kinds with their weights to `kind` with
    its `weight` (MPO: sigmoid 0.8, bco_pair 0.2, sft 1). `ld_alpha` below 1 is LD-DPO, `wpo` weighs pairs by how likely
    the policy is to write them itself."""

    kind: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    alpha: float = 0.5
    tau: float = 0.05
    weight: float = 1.0
    also: Mapping[str, float] | None = None
    nll: Nll = "answer"
    ld_alpha: float = 1.0
    wpo: bool = False

    @property
    def kinds(self) -> dict[str, float]:
        return {self.kind: self.weight, **(self.also or {})}

    @property
    def refers(self) -> bool:
        return True

    @property
    def coupled(self) -> str:
        return next((kind for kind in self.kinds if kind.startswith("aot")), "")

    @property
    def beyond(self) -> float:
        return self.ld_alpha

    @property
    def squares(self) -> bool:
        return self.wpo

    def losses(self, pairs: Compared) -> Array:
        found = losses.dpo(
            pairs.chosen.log_probs,
            pairs.rejected.log_probs,
            pairs.reference_chosen,
            pairs.reference_rejected,
            beta=self.beta,
            kind=self.kinds,
            label_smoothing=self.label_smoothing,
            divergence=self.divergence,
            alpha=self.alpha,
            tau=self.tau,
            chosen_lengths=pairs.chosen.lengths,
            rejected_lengths=pairs.rejected.lengths,
            nll=pairs.nll(self.nll),
            mask=pairs.mask,
        )
        if not self.wpo:
            return found
        for said in (pairs.chosen, pairs.rejected):
            assert said.squares is not None
            found = found * losses.wpo_weights(said.log_probs, said.squares, said.lengths)
        return found

    def rewards(self, answers: Answers, reference: Array) -> Array:
        return losses.implicit_rewards(answers.log_probs, reference, beta=self.beta)


@dataclass(frozen=True)
class Cpo(Objective):
    """Contrastive preference optimisation: no reference, but the chosen answer's likelihood with `nll_weight`."""

    kind: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    alpha: float = 0.0
    nll_weight: float = 1.0
    nll: Nll = "answer"

    def losses(self, pairs: Compared) -> Array:
        return losses.cpo(
            pairs.chosen.log_probs,
            pairs.rejected.log_probs,
            pairs.nll(self.nll),
            beta=self.beta,
            kind=self.kind,
            label_smoothing=self.label_smoothing,
            alpha=self.alpha,
            nll_weight=self.nll_weight,
            chosen_lengths=pairs.chosen.lengths,
            rejected_lengths=pairs.rejected.lengths,
        )

    def rewards(self, answers: Answers, reference: Array) -> Array:
        return self.beta * (_mean(answers) if self.kind == "ipo" else answers.log_probs)


@dataclass(frozen=True)
class Simpo(Objective):
    """Simple preference optimisation: mean log-probabilities that differ by a margin `gamma`. `alpha` other than 0 is
    AlphaPO (0.25 is typical)."""

    beta: float = 2.0
    gamma: float = 1.0
    label_smoothing: float = 0.0
    alpha: float = 0.0

    def losses(self, pairs: Compared) -> Array:
        return losses.simpo(
            pairs.chosen.log_probs,
            pairs.rejected.log_probs,
            pairs.chosen.lengths,
            pairs.rejected.lengths,
            beta=self.beta,
            gamma=self.gamma,
            label_smoothing=self.label_smoothing,
            alpha=self.alpha,
        )

    def rewards(self, answers: Answers, reference: Array) -> Array:
        return self.beta * _mean(answers)


@dataclass(frozen=True)
class Orpo(Objective):
    """Odds-ratio preference optimisation: tuning on chosen answers and preferring them at once, without a reference."""

    beta: float = 0.1
    nll: Nll = "answer"

    def losses(self, pairs: Compared) -> Array:
        # Where there is no pair, an answer of probability 1 would have infinite odds.
        chosen, rejected = (
            said._replace(log_probs=jnp.where(pairs.mask > 0, said.log_probs, -1.0))
            for said in (pairs.chosen, pairs.rejected)
        )
        return losses.orpo(
            chosen.log_probs, rejected.log_probs, chosen.lengths, rejected.lengths, pairs.nll(self.nll), beta=self.beta
        )

    def rewards(self, answers: Answers, reference: Array) -> Array:
        return self.beta * _mean(answers)


PairObjective = Dpo | Cpo | Simpo | Orpo


def _mean(answers: Answers) -> Array:
    return answers.log_probs / jnp.maximum(answers.lengths, 1.0)
