# SPDX-License-Identifier: Apache-2.0
"""Proximal policy optimisation on the model's own answers (Schulman et al. 2017, https://arxiv.org/abs/1707.06347; as
for language models: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593).

Policy, critic, reward model and reference are deltas and heads on one base: the reference is the model that the run
starts from (the base, or the base under `model.adapter`), and it is there already.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxpost import delta, losses
from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.faults import Fault
from jaxpost.losses import masked_mean
from jaxpost.models.decoder import Decoder
from jaxpost.recipes.assembly import Assembly, DeltaConfig
from jaxpost.recipes.base import Fresh, Model, Pretrained
from jaxpost.recipes.compiling import Program
from jaxpost.recipes.corpus import Files, Mixed, Tasks, Tfds, World
from jaxpost.recipes.review import Review
from jaxpost.recipes.rollouts import policy, scoring, text
from jaxpost.recipes.rollouts.penalty import Penalty
from jaxpost.recipes.rollouts.rollout import Rollout
from jaxpost.recipes.rollouts.scoring import Function, Reward, RewardModel, Unscored
from jaxpost.recipes.rollouts.text import Pretraining
from jaxpost.recipes.run import Training
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.step import LossFn

__all__ = [
    "Config",
    "Files",
    "Fresh",
    "Function",
    "Mixed",
    "Objective",
    "Optimiser",
    "Penalty",
    "Pretrained",
    "Pretraining",
]
__all__ += ["Review", "RewardModel", "Rollout", "Tasks", "Tfds", "Training", "World"]
OBSERVED = ("log_probs", "values", "reference_log_probs")


@dataclass(frozen=True)
class Objective:
    """What is minimised. `low` and `high` bound the ratio to the policy that sampled, `dual` what a bad answer may cost
    (dual clip). `value_weight` is the critic's share, its change clipped to `value_clip`; for the first `critic_steps`
    steps it learns alone. `whiten_rewards` scales a batch's rewards to a deviation of one. `entropy` is the weight of a
    bonus for undecided tokens."""

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    value_weight: float = 0.1
    value_clip: float | None = 0.2
    critic_steps: int = 0
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    entropy: float = 0.0

    def __post_init__(self) -> None:
        if self.dual is not None and not self.dual > 1:
            raise Fault(f"objective.dual is {self.dual}; it must be above 1, or None for no second clip")


@dataclass(frozen=True)
class Config:
    """A run of PPO: of every step's answers `epochs` passes in `minibatches` updates each. By default policy and critic
    share a delta with a head; `delta.ActorCritic` keeps them apart. `stop_at` is a mean reward that is enough."""

    run: str
    model: Model = Pretrained()
    delta: DeltaConfig = delta.Both(delta.Lora(), delta.Head(1))
    data: Tasks | Files | Tfds | Mixed | World = Tasks()
    rewards: tuple[Reward, ...] = (Function("exact"),)
    unscored: Unscored = "leave_out"
    rollout: Rollout = Rollout()
    penalty: Penalty = Penalty()
    objective: Objective = Objective()
    pretraining: Pretraining | None = None
    epochs: int = 4
    minibatches: int = 4
    stop_at: float | None = None
    optim: Optimiser = Optimiser(lr=1e-4, schedule="constant")
    train: Training = Training()
    review: Review = Review()

    @property
    def extra(self) -> dict[str, Any]:
        """What changes from step to step besides the weights."""
        return {"coefficient": jnp.float32(self.penalty.coefficient), "step": jnp.int32(0)}


def prepare(config: Config, batch: Batch, extra: Tree) -> tuple[Batch, Metrics]:
    """Rewards of tokens, advantages and returns: statements about the whole batch."""
    mask, objective = batch["mask"], config.objective
    kl = losses.kl_estimate(batch["log_probs"], batch["reference_log_probs"], config.penalty.kind)
    scores = jnp.where(jnp.isnan(batch["reward"]), 0.0, batch["reward"])
    rewards = losses.token_rewards(scores, mask, kl, extra["coefficient"])
    if objective.whiten_rewards:
        rewards = losses.whiten(rewards, mask, shift_mean=False)
    values = batch["values"] * mask
    advantages, returns = losses.gae(rewards, values, mask, gamma=objective.gamma, lam=objective.lam)
    told = {
        **policy.reported(batch, scoring.names(config.rewards)),
        "kl_coefficient": extra["coefficient"],
        "explained_variance": losses.explained_variance(values, returns, mask),
        "return": masked_mean(returns, mask),
    }
    return {**batch, "advantages": losses.whiten(advantages, mask), "returns": returns}, told


def make_loss(model: Decoder, config: Config) -> LossFn:
    """The clipped surrogate, the critic's error and an entropy bonus, over the tokens of a minibatch."""
    objective = config.objective

    def loss(trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None) -> tuple[Array, Metrics]:
        mask, whole = batch["mask"], policy.whole(batch)
        learns = jnp.where(extra["step"] < objective.critic_steps, 0.0, 1.0)
        tree, critic = policy.roles(delta.combine(trainable, frozen["fixed"]), frozen["base"], key)
        said = policy.answers(
            model,
            tree,
            batch,
            config.rollout.temperature,
            remat=config.train.remat,
            entropy=objective.entropy != 0,
            critic=critic,
            shares=learns,
        )
        assert said.values is not None
        old, advantages = batch["log_probs"], batch["advantages"]
        low, high = objective.low, objective.high
        surrogate = losses.aggregate(
            losses.ppo(said.log_probs, old, advantages, mask, dual=objective.dual, low=low, high=high),
            mask,
            "tokens",
            whole,
        )
        value = losses.value_loss(said.values, batch["returns"], batch["values"], objective.value_clip)
        value = losses.aggregate(value, mask, "tokens", whole)
        entropy = masked_mean(said.entropy, mask, whole.tokens)
        total = learns * (surrogate - objective.entropy * entropy) + objective.value_weight * value
        told = {}
        if config.pretraining is not None:
            told["text_loss"] = text.loss(model, tree, batch, config.train.remat)
            total += learns * config.pretraining.weight * told["text_loss"]
        return total, {
            **told,
            "loss": total,
            "policy_loss": surrogate,
            "value_loss": value,
            "entropy": entropy,
            "clipped": masked_mean(
                losses.clipped(said.log_probs, old, advantages, mask, low=low, high=high), mask, whole.tokens
            ),
            "update_kl": masked_mean(losses.kl_estimate(old, said.log_probs, "k3"), mask, whole.tokens),
        }

    return loss


def finish(config: Config, extra: Tree, metrics: Metrics) -> dict[str, Array]:
    """The coefficient of the next step's penalty."""
    following = config.penalty.followed(extra["coefficient"], metrics["kl"], config.rollout.rows)
    return {"coefficient": following, "step": extra["step"] + 1}


def programs(config: Config, assembly: Assembly, judges: Mapping[str, Tree]) -> dict[str, Program]:
    """The jitted programs of a run, with abstract arguments to compile them for."""
    policy.check_critic(assembly.trainable)
    learning = policy.Learning(
        make_loss(assembly.config, config), OBSERVED, partial(prepare, config), partial(finish, config)
    )
    return policy.programs(config, assembly, judges, learning)


def main(config: Config, directory: Path) -> None:
    """Trains, from the last checkpoint if there is one, and shows what was learned."""
    policy.train(config, directory, programs)
