# SPDX-License-Identifier: Apache-2.0
"""Policy optimisation without a critic: an answer is compared with the other answers to its prompt (GRPO: Shao et al.
2024, https://arxiv.org/abs/2402.03300), in all its forms, RLOO and REINFORCE++ among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp

from jaxpost import delta, losses
from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.faults import Fault, nearest
from jaxpost.losses import masked_mean
from jaxpost.losses.advantages import Scale
from jaxpost.losses.policy import FAMILY
from jaxpost.models.decoder import Decoder
from jaxpost.recipes.assembly import Assembly, DeltaConfig
from jaxpost.recipes.base import Fresh, Model, Pretrained
from jaxpost.recipes.compiling import Program
from jaxpost.recipes.corpus import Files, Mixed, Tasks, Tfds, World
from jaxpost.recipes.review import Review
from jaxpost.recipes.rollouts import advantages, policy, scoring
from jaxpost.recipes.rollouts.advantages import Advantage
from jaxpost.recipes.rollouts.rollout import Rollout
from jaxpost.recipes.rollouts.scoring import Function, Reward, RewardModel, Unscored
from jaxpost.recipes.run import Training
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.step import LossFn

__all__ = ["Config", "Files", "Fresh", "Function", "Mixed", "Objective", "Optimiser", "Pretrained", "Review"]
__all__ += ["RewardModel", "Rollout", "Sampler", "Tasks", "Tfds", "Training", "World"]
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo", "rloo")


@dataclass(frozen=True)
class Sampler:
    """A correction for a sampler whose log-probabilities are not the trainer's, as where top_p or another precision
    drew: the ratio of a `level`, beyond `cap` cut to it or left out (`losses.sampler_weights`)."""

    level: Literal["token", "sequence"] = "token"
    beyond: Literal["truncate", "mask"] = "truncate"
    cap: float = 3.0


@dataclass(frozen=True)
class Objective:
    """What is minimised: a `kind` of the family (`losses.policy.FAMILY`) on advantages of a kind, scaled by the
    deviation of the group, of the batch or not at all. `low` and `high` bound the ratio where the kind clips. `kl` is
    the weight of the divergence from the reference (k3, times the ratio if `unbiased`), `kl_in_reward` that of the same
    in the rewards (k1; RLOO, REINFORCE++). `top_entropy` keeps the share of the tokens that are least decided;
    `off_policy` leaves out bad answers that have become stranger than so many nats a token."""

    kind: str = "dapo"
    advantage: Advantage = "group"
    scale: Scale = "group"
    low: float = 0.2
    high: float = 0.2
    kl: float = 0.0
    unbiased: bool = True
    kl_in_reward: float = 0.0
    entropy: float = 0.0
    top_entropy: float = 1.0
    off_policy: float | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        if self.kind not in FAMILY:
            raise Fault(f"objective.kind is {self.kind!r}; {nearest(self.kind, FAMILY)}")
        if self.advantage not in get_args(Advantage):
            raise Fault(f"objective.advantage is {self.advantage!r}; {nearest(self.advantage, get_args(Advantage))}")


@dataclass(frozen=True)
class Config:
    """A run of GRPO: of every step's answers `epochs` passes in `minibatches` updates each. `stop_at` is a mean reward
    that is enough."""

    run: str
    model: Model = Pretrained()
    delta: DeltaConfig = delta.Lora()
    data: Tasks | Files | Tfds | Mixed | World = Tasks()
    rewards: tuple[Reward, ...] = (Function("exact"),)
    unscored: Unscored = "leave_out"
    rollout: Rollout = Rollout(samples=8)
    objective: Objective = Objective()
    epochs: int = 1
    minibatches: int = 1
    stop_at: float | None = None
    optim: Optimiser = Optimiser(lr=1e-4, schedule="constant")
    train: Training = Training()
    review: Review = Review()

    @property
    def extra(self) -> None:
        return None


def observed(config: Config) -> tuple[str, ...]:
    """What has to be known of a rollout before learning: the reference's log-probabilities where it costs to leave it,
    and the policy's own where they will have moved by a later update."""
    if config.objective.kl or config.objective.kl_in_reward:
        return "log_probs", "reference_log_probs"
    return ("log_probs",) if config.epochs * config.minibatches > 1 else ()


def prepare(config: Config, batch: Batch, extra: Tree) -> tuple[Batch, Metrics]:
    """Advantages, on every token of an answer, and what there is to report of the whole batch."""
    found = advantages.of_rollout(config, batch)
    found = found if found.ndim == 2 else jnp.broadcast_to(found[:, None], batch["mask"].shape)
    varied = losses.varied(batch["reward"], batch["group"], count=config.rollout.prompts)
    return {**batch, "advantages": found}, {
        **policy.reported(batch, scoring.names(config.rewards)),
        "varied": jnp.mean(varied),
    }


def make_loss(model: Decoder, config: Config) -> LossFn:
    """The family's loss over the tokens of a minibatch, a divergence from the reference and an entropy bonus."""
    objective, member = config.objective, FAMILY[config.objective.kind]
    bounds: dict[str, Any] = {"low": objective.low, "high": objective.high} if objective.kind in CLIPPED else {}
    undecided = objective.top_entropy < 1 or objective.entropy != 0

    def loss(trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None) -> tuple[Array, Metrics]:
        mask, whole = batch["mask"], policy.whole(batch)
        tree, _ = policy.roles(delta.combine(trainable, frozen["fixed"]), frozen["base"], key)
        said = policy.answers(
            model, tree, batch, config.rollout.temperature, remat=config.train.remat, entropy=undecided
        )
        own, sampler = said.log_probs, batch["sampler_log_probs"]
        low, high = objective.low, objective.high
        old = batch.get("log_probs", own)  # before the first update they are the same
        weights = _weights(objective.sampler, old, sampler, mask)
        if objective.kind == "vespo":  # its own ratio takes them in
            each = member.loss(own, old, batch["advantages"], mask, weights=weights)
        else:
            each = member.loss(own, old, batch["advantages"], mask, **bounds)
            each = each if weights is None else each * (weights if weights.ndim == 2 else weights[:, None])
        if objective.off_policy is not None:
            each *= losses.off_policy_mask(own, sampler, batch["advantages"], mask, objective.off_policy)
        if objective.top_entropy < 1:
            each *= losses.top_entropy_mask(said.entropy, mask, objective.top_entropy)
        if objective.kl:
            ratios = losses.log_ratios(own, old, mask, member.level) if objective.unbiased else None
            each += objective.kl * losses.kl_estimate(own, batch["reference_log_probs"], "k3", log_ratios=ratios)
        surrogate = losses.aggregate(each, mask, member.how, whole, length=config.rollout.answer_tokens)
        entropy = masked_mean(said.entropy, mask, whole.tokens)
        total = surrogate - objective.entropy * entropy
        outside = losses.clipped(own, old, batch["advantages"], mask, low=low, high=high, level=member.level)
        gap = jnp.abs(old - sampler)
        return total, {
            "loss": total,
            "entropy": entropy,
            "clipped": masked_mean(outside, mask, whole.tokens),
            "update_kl": masked_mean(losses.kl_estimate(old, own, "k3"), mask, whole.tokens),
            "mean_sampler_gap": masked_mean(gap, mask, whole.tokens),
        }

    return loss


def _weights(correction: Sampler | None, own: Array, sampler: Array, mask: Array) -> Array | None:
    """Of tokens `[b, r]` or of answers `[b]`, if the sampler is to be corrected for."""
    if correction is None:
        return None
    level = correction.level
    found = losses.sampler_weights(own, sampler, mask, level=level, beyond=correction.beyond, high=correction.cap)
    return found if level == "token" else found[:, 0]


def programs(config: Config, assembly: Assembly, judges: Mapping[str, Tree]) -> dict[str, Program]:
    """The jitted programs of a run, with abstract arguments to compile them for."""
    learning = policy.Learning(make_loss(assembly.config, config), observed(config), partial(prepare, config))
    return policy.programs(config, assembly, judges, learning)


def check(config: Config) -> None:
    """That answers can be compared, and that what couples them is not cut."""
    grouped = config.objective.advantage != "reinforce++"
    if grouped and config.rollout.samples < 2:
        raise Fault(
            "rollout.samples is 1: a group of one has nothing to be compared with; take 2 at least, or "
            "objective.advantage reinforce++"
        )
    if config.objective.advantage == "decoupled" and config.objective.kl_in_reward:
        raise Fault("objective.kl_in_reward is for one reward; with the decoupled advantage use objective.kl")
    if config.objective.advantage == "decoupled" and config.rollout.unended:
        raise Fault("rollout.unended has no part in the decoupled advantage; reward 'ended' beside the others instead")
    if config.objective.top_entropy < 1 and config.train.microbatches > 1:
        raise Fault("objective.top_entropy compares the tokens of a whole batch; set train.microbatches to 1")


def main(config: Config, directory: Path) -> None:
    """Trains, from the last checkpoint if there is one, and shows what was learned."""
    check(config)
    policy.train(config, directory, programs)
