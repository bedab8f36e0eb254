# SPDX-License-Identifier: Apache-2.0
"""Preferences learned directly, without a reward model: DPO and its family, CPO, SimPO, ORPO.

The reference is the model that the run starts from, base and adapter alike, whose weights are there anyway: they are
read twice, not held twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxpost import delta, losses
from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.data.batches.pairs import Handling, Pairs
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import run, trained
from jaxpost.recipes.assembly import Assembly, DeltaConfig, assemble, reserving
from jaxpost.recipes.base import Fresh, Model, Pretrained
from jaxpost.recipes.compiling import Program
from jaxpost.recipes.corpus import Files, Mixed, Tfds, World
from jaxpost.recipes.preferences import moving, references
from jaxpost.recipes.preferences.answers import Answers, abstract, answers, halved, token_count, weighted_means
from jaxpost.recipes.preferences.moving import Moving
from jaxpost.recipes.preferences.objectives import Compared, Cpo, Dpo, Orpo, PairObjective, Simpo
from jaxpost.recipes.preferences.preferring import Preferring
from jaxpost.recipes.review import Review
from jaxpost.recipes.run import Batches, Training
from jaxpost.shard import make_mesh
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.step import LossFn, make_step

__all__ = ["Batches", "Config", "Cpo", "Dpo", "Files", "Fresh", "Handling", "Mixed", "Moving", "Optimiser", "Orpo"]
__all__ += ["Pretrained", "Review", "Simpo", "Tfds", "Training", "World"]


@dataclass(frozen=True)
class Config:
    """A run of preference optimisation on rows of `chosen` and `rejected` (or rankings, whose best and worst answers
    are compared). `reference`: `start` asks the model that the run starts from in every step; `stored` asks it once,
    before the first, and keeps what it said in the run's directory. `moving` lets the reference follow the policy.
    `judges` are rewards (`jaxpost.evals.rewards`, or `path.py:function`) by which answers to held-out prompts are
    measured before and after."""

    run: str
    model: Model = Pretrained()
    delta: DeltaConfig = delta.Lora()
    data: Files | World | Tfds | Mixed = World("answers", "preference")
    objective: PairObjective = Dpo()
    reference: Literal["start", "stored"] = "start"
    moving: Moving | None = None
    rows: Handling = Handling()
    batches: Batches = Batches()
    optim: Optimiser = Optimiser()
    train: Training = Training()
    review: Review = Review(examples=256)
    judges: tuple[str, ...] = ()

    @property
    def extra(self) -> Any:
        """What the state holds besides the delta, made from how it starts."""
        return moving.copied if self.moving else None


def check(config: Config) -> None:
    """That the parts of a config go together."""
    objective, stored = config.objective, config.reference == "stored"
    if objective.coupled and config.train.microbatches > 1:
        raise Fault(
            f"objective.kind {objective.coupled} compares each pair with the others of its batch, which must not be "
            f"cut; set train.microbatches to 1 (it is {config.train.microbatches})"
        )
    if not objective.refers and (stored or config.moving):
        raise Fault(f"{type(objective).__name__} knows no reference; leave reference 'start' and moving None")
    if stored and config.moving:
        raise Fault("moving changes the reference, and reference is 'stored'; take one of them")
    if objective.beyond < 1.0 and stored:
        raise Fault("ld_alpha weighs tokens, and reference 'stored' keeps sums; use reference 'start'")
    references.check(config)


def make_loss(model: Decoder, config: Config) -> LossFn:
    """The mean loss of the pairs of the whole global batch, by their weights; and how well the policy tells them
    apart: accuracy and margin by implicit rewards, `likelier` by plain log-probability."""
    objective, train = config.objective, config.train

    def loss(trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None) -> tuple[Array, Metrics]:
        weights = delta.bind(frozen["base"], delta.combine(trainable, frozen["fixed"]), key)
        said = answers(model, weights, batch, train.remat, beyond=objective.beyond, squares=objective.squares)
        asked = objective.refers
        reference = references.ask(model, config, frozen, extra, batch, objective.beyond) if asked else nothing(said)
        chosen, rejected = said.pairs(0), said.pairs(1)
        both = halved(reference, 0), halved(reference, 1)
        weight = batch["weight"]
        pairs = Compared(chosen, rejected, *both, weight, batch["chosen_length"])
        found = {"loss": objective.losses(pairs)}
        rewards = objective.rewards(chosen, both[0]), objective.rewards(rejected, both[1])
        found |= {
            "accuracy": losses.pair_accuracies(*rewards, tie=0.5),
            "margin": losses.pair_margins(*rewards),
            "chosen_reward": rewards[0],
            "rejected_reward": rewards[1],
            "likelier": losses.pair_accuracies(chosen.log_probs, rejected.log_probs, tie=0.5),
            "chosen_log_prob": chosen.log_probs,
            "rejected_log_prob": rejected.log_probs,
        }
        means = weighted_means(found, weight, batch["total"])
        rest = {name: jax.lax.stop_gradient(mean) for name, mean in means.items()}
        return means["loss"], {**rest, "predictions": jnp.sum(weight), "tokens": token_count(batch)}

    return loss


def nothing(said: Answers) -> Array:
    return jnp.zeros_like(said.log_probs)


def denominators(batch: Batch) -> Mapping[str, Array]:
    """What all pairs of the whole global batch weigh, and how many tokens its chosen answers have in the mean."""
    there = jnp.maximum(jnp.sum((batch["weight"] > 0).astype(jnp.float32)), 1.0)
    tokens = jnp.sum(jnp.where(batch["segments"] % 2 == 1, batch["mask"], 0.0))
    return {"total": jnp.maximum(jnp.sum(batch["weight"]), 1e-9), "chosen_length": tokens / there}


def programs(config: Config, assembly: Assembly) -> dict[str, Program]:
    """The jitted programs of a run, with abstract arguments to compile them for."""
    loss = make_loss(assembly.config, config)
    step = make_step(loss, assembly.optimiser, denominators, config.train.microbatches)
    step = moving.following(step, config.moving) if config.moving else step

    def evaluate(trainable: Tree, frozen: Tree, batch: Batch) -> Metrics:
        # Without `extra`: where the reference moves, what is held out is still measured against the run's start.
        return loss(trainable, frozen, None, {**batch, **denominators(batch)}, None)[1]

    batch = abstract(unit_of(config), config.batches.rows, config.batches.seq_len, assembly.mesh)
    return assembly.programs(step, evaluate, batch)


def unit_of(config: Config) -> Pairs:
    return Pairs(config.rows, reference=config.reference == "stored")


def main(config: Config, directory: Path) -> None:
    """Trains, from the last checkpoint if there is one, and shows how well held-out pairs are told apart."""
    mesh = make_mesh(config.train.mesh)
    run.check(config, mesh)
    check(config)
    with jax.set_mesh(mesh):
        model = run.reading(lambda: trained.load(config.model, mesh), "reading the model")
        tokenizer = reserving(model.tokenizer, config.delta)
        known = references.known(config, directory, model, unit_of(config), mesh)
        data = run.sources(known, tokenizer, unit_of(config))
        assembly = assemble(
            model.config,
            model.specs,
            config.delta,
            config.optim,
            data.steps,
            mesh,
            model.tokenizer.encode,
            trained.delta_of,
            config.extra,
        )
        reviewing = Preferring(config, directory, model, data, mesh)
        run.train(config, directory, model, data, assembly, partial(programs, assembly=assembly), reviewing)
