# SPDX-License-Identifier: Apache-2.0
"""Single answers, each called good or bad, learned from directly: KTO and its kin. Preferences are two such answers.

KTO's point of reference is a mean over the whole batch, of answers to other prompts (`data/rows/judged.py` says which):
so its batches are not cut, and what has no such mean may be.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxpost import delta, losses
from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.data.batches.pairs import Handling
from jaxpost.data.batches.unpaired import Verdicts
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import run, trained
from jaxpost.recipes.assembly import Assembly, DeltaConfig, assemble, reserving
from jaxpost.recipes.base import Fresh, Model, Pretrained
from jaxpost.recipes.compiling import Program
from jaxpost.recipes.corpus import Files, Mixed, Tfds, World
from jaxpost.recipes.preferences import moving, references
from jaxpost.recipes.preferences.answers import abstract, answers, halved, token_count
from jaxpost.recipes.preferences.moving import Moving
from jaxpost.recipes.preferences.preferring import Preferring
from jaxpost.recipes.preferences.singles import Single
from jaxpost.recipes.review import Review
from jaxpost.recipes.run import Batches, Training
from jaxpost.shard import make_mesh
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.step import LossFn, make_step

__all__ = ["Batches", "Config", "Files", "Fresh", "Handling", "Mixed", "Moving", "Optimiser", "Pretrained", "Review"]
__all__ += ["Tfds", "Training", "Unpaired", "World"]


@dataclass(frozen=True)
class Unpaired:
    """`kto`: gains and losses against what the policy has moved in the mean; `apo_zero`: against the start; `bco`: a
    classifier of good and bad. The weights balance good and bad answers: their numbers times these should be about
    1:1 to 4:3 (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, section 4.2)."""

    kind: Literal["kto", "apo_zero", "bco"] = "kto"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @property
    def coupled(self) -> bool:
        return self.kind == "kto"


@dataclass(frozen=True)
class Config:
    """A run on rows of a completion and its `label`, or of `chosen` and `rejected`. `reference`, `moving` and `judges`
    are as in the recipe `dpo`."""

    run: str
    model: Model = Pretrained()
    delta: DeltaConfig = delta.Lora()
    data: Files | World | Tfds | Mixed = World("answers", "unpaired")
    objective: Unpaired = Unpaired()
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
    if config.objective.coupled and config.train.microbatches > 1:
        raise Fault(
            "objective.kind kto has a point of reference that is a mean over the batch, which must not be cut; set "
            f"train.microbatches to 1 (it is {config.train.microbatches}), or take apo_zero"
        )
    if config.reference == "stored" and config.moving:
        raise Fault("moving changes the reference, and reference is 'stored'; take one of them")
    references.check(config)


def make_loss(model: Decoder, config: Config) -> LossFn:
    """The mean loss of the answers of the whole global batch, by their weights; and what their implicit rewards are,
    of good ones and of bad ones. `accuracy` is how many are on the right side of the point of reference."""
    objective = config.objective

    def loss(trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None) -> tuple[Array, Metrics]:
        weights = delta.bind(frozen["base"], delta.combine(trainable, frozen["fixed"]), key)
        said = answers(model, weights, batch, config.train.remat).log_probs
        reference = references.ask(model, config, frozen, extra, batch)
        weight, good, z = batch["weight"], batch["label"] > 0, jnp.zeros(())
        if objective.coupled:
            beside, before = halved(said, 1), halved(reference, 1)
            z = losses.kto_divergence(beside, before, (weight > 0).astype(jnp.float32))
            said, reference = halved(said, 0), halved(reference, 0)
        balance = {name: getattr(objective, name) for name in ("desirable_weight", "undesirable_weight")}
        if objective.kind == "bco":
            found = losses.bco(said, reference, good, beta=objective.beta)
            found = found * jnp.where(good, *balance.values())
        else:  # apo_zero is kto with a point of reference at 0
            found = losses.kto(said, reference, good, z, beta=objective.beta, **balance)
        value = jnp.sum(jnp.where(weight > 0, found, 0.0) * weight) / batch["total"]
        rewards = jax.lax.stop_gradient(losses.implicit_rewards(said, reference, beta=objective.beta))
        right = jnp.where(rewards == objective.beta * z, 0.5, (rewards > objective.beta * z) == good)
        chosen = jnp.sum(jnp.where(good, rewards * weight, 0.0)) / batch["good"]
        rejected = jnp.sum(jnp.where(good, 0.0, rewards * weight)) / batch["bad"]
        metrics = {
            "loss": value,
            "accuracy": jnp.sum(right * weight) / batch["total"],
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "predictions": jnp.sum(weight),
            "tokens": token_count(batch),
        }
        return value, metrics | ({"kl": z} if objective.coupled else {})

    return loss


def denominators(batch: Batch) -> Mapping[str, Array]:
    """What all answers of the whole global batch weigh, and what the good and the bad ones do."""
    good = jnp.sum(batch["weight"] * batch["label"])
    total = jnp.sum(batch["weight"])
    return {name: jnp.maximum(x, 1e-9) for name, x in {"total": total, "good": good, "bad": total - good}.items()}


def programs(config: Config, assembly: Assembly) -> dict[str, Program]:
    """The jitted programs of a run, with abstract arguments to compile them for."""
    loss = make_loss(assembly.config, config)
    step = make_step(loss, assembly.optimiser, denominators, config.train.microbatches)
    step = moving.following(step, config.moving) if config.moving else step

    def evaluate(trainable: Tree, frozen: Tree, batch: Batch) -> Metrics:
        return loss(trainable, frozen, None, {**batch, **denominators(batch)}, None)[1]

    batch = abstract(unit_of(config), config.batches.rows, config.batches.seq_len, assembly.mesh)
    return assembly.programs(step, evaluate, batch)


def unit_of(config: Config) -> Verdicts:
    return Verdicts(config.rows, config.objective.coupled, reference=config.reference == "stored")


def main(config: Config, directory: Path) -> None:
    """Trains, from the last checkpoint if there is one, and shows how well good answers are told from bad ones."""
    mesh = make_mesh(config.train.mesh)
    run.check(config, mesh)
    check(config)
    with jax.set_mesh(mesh):
        model = run.reading(lambda: trained.load(config.model, mesh), "reading the model")
        single, tokenizer = Single(config.data, config.objective.coupled), reserving(model.tokenizer, config.delta)
        # The review reads the rows as they are, what is trained on as single answers.
        known = references.known(replace(config, data=single), directory, model, unit_of(config), mesh)
        data = run.sources(known, tokenizer, unit_of(config))
        encode = model.tokenizer.encode
        assembly = assemble(
            model.config, model.specs, config.delta, config.optim, data.steps, mesh, encode, trained.delta_of,
            config.extra,
        )  # fmt: skip
        reviewing = Preferring(config, directory, model, data, mesh)
        run.train(config, directory, model, data, assembly, partial(programs, assembly=assembly), reviewing)
