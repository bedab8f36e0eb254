# SPDX-License-Identifier: Apache-2.0
"""Reward models: what people prefer, as a score of an answer. It is read at the answer's last token, the end token.

What is trained is any delta with a head in it: by default low-rank updates and a head of one class, which other runs
lay over the base that they have in memory anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost import delta
from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.data.batches.packing import MOST
from jaxpost.data.batches.pairs import Handling
from jaxpost.data.batches.unpaired import Verdicts
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder, specs
from jaxpost.recipes import run, trained
from jaxpost.recipes.assembly import Assembly, DeltaConfig, assemble, reserving
from jaxpost.recipes.base import Fresh, Model, Pretrained
from jaxpost.recipes.compiling import Program
from jaxpost.recipes.corpus import Files, Mixed, Tfds, World
from jaxpost.recipes.preferences.answers import abstract, scores, token_count
from jaxpost.recipes.preferences.judgements import BradleyTerry, Judged, Judgement, Pointwise, Ranked, Ties, TwoClass
from jaxpost.recipes.preferences.rated import Rated
from jaxpost.recipes.preferences.singles import Single
from jaxpost.recipes.review import Review
from jaxpost.recipes.run import Batches, Training
from jaxpost.shard import make_mesh
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.step import LossFn, make_step

__all__ = ["Batches", "BradleyTerry", "Config", "Files", "Fresh", "Handling", "Mixed", "Optimiser", "Pointwise"]
__all__ += ["Pretrained", "Ranked", "Review", "Tfds", "Ties", "Training", "TwoClass", "World"]


@dataclass(frozen=True)
class Config:
    """A run of reward modelling on rows of `chosen` and `rejected`, rankings, scores, or answers called good or bad.
    Human and other preferences mix by weight: of sources in `Mixed`, or of rows that have a field `weight`."""

    run: str
    model: Model = Pretrained()
    delta: DeltaConfig = delta.Both(delta.Lora(), delta.Head(1))
    data: Files | World | Tfds | Mixed = World("reviews", "preference")
    objective: Judgement = BradleyTerry()
    rows: Handling = Handling()
    batches: Batches = Batches()
    optim: Optimiser = Optimiser()
    train: Training = Training()
    review: Review = Review(examples=512, generations=0)


def check(config: Config, model: Decoder) -> None:
    """That the delta has a head of the size that the objective asks for."""
    head: Any = config.delta(specs(model)).get("heads/classes")
    found, wanted = 0 if head is None else head.value.shape[-1], config.objective.classes
    if found != wanted:
        has = f"a head of {found} classes" if found else "no head"
        raise Fault(
            f"delta: {has}, and {type(config.objective).__name__} scores answers with {wanted}; choose "
            f"Both(..., Head({wanted})), such as Both(Lora(), Head({wanted}))"
        )


def rated(model: Decoder, config: Config, weights: Tree, batch: Batch) -> tuple[Judged, Array]:
    """What the scores of a batch are worth, and the scores `[b, MOST]` (of two classes `[b, MOST, 2]`)."""
    found = scores(model, weights, batch, config.train.remat)
    found = found[..., 0] if config.objective.classes == 1 else found
    return config.objective.judged(found, batch), found


def make_loss(model: Decoder, config: Config) -> LossFn:
    """The mean loss of the whole global batch, by the rows' weights; the share of pairs that are told apart, and by how
    much."""

    def loss(trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None) -> tuple[Array, Metrics]:
        weights = delta.bind(frozen["base"], delta.combine(trainable, frozen["fixed"]), key)
        found, given = rated(model, config, weights, batch)
        value = total(found.losses, found.weight) / batch["total"]
        right = jnp.where(found.margins == 0, 0.5, found.margins > 0)
        return value, {
            "loss": value,
            "accuracy": total(right, found.compared) / batch["pairs"],
            "margin": total(found.margins, found.compared) / batch["pairs"],
            "score": jnp.sum(given[..., -1] if given.ndim == 3 else given) / batch["answers"],
            "predictions": jnp.sum(found.weight),
            "tokens": token_count(batch),
        }

    return loss


def total(x: Array, weight: Array) -> Array:
    """The weighted sum over what is there; what is not may be anything."""
    return jnp.sum(jnp.where(weight > 0, x, 0.0) * weight)


def denominators(config: Config, batch: Batch) -> Mapping[str, Array]:
    """What the rows and the pairs of the whole global batch weigh, and how many answers it has: all that depends on no
    score."""
    shape = batch["tokens"].shape[0], MOST, *((2,) if config.objective.classes == 2 else ())
    found = config.objective.judged(jnp.zeros(shape), batch)
    answers = jnp.sum(jnp.max(batch["segments"], axis=1))
    return {
        "total": jnp.maximum(jnp.sum(found.weight), 1e-9),
        "pairs": jnp.maximum(jnp.sum(found.compared), 1e-9),
        "answers": jnp.maximum(answers, 1).astype(jnp.float32),
    }


def programs(config: Config, assembly: Assembly) -> dict[str, Program]:
    """The jitted programs of a run, with abstract arguments to compile them for."""
    loss, whole = make_loss(assembly.config, config), partial(denominators, config)
    step = make_step(loss, assembly.optimiser, whole, config.train.microbatches)

    def evaluate(trainable: Tree, frozen: Tree, batch: Batch) -> Metrics:
        return loss(trainable, frozen, None, {**batch, **whole(batch)}, None)[1]

    batch = abstract(config.objective.unit(config.rows), config.batches.rows, config.batches.seq_len, assembly.mesh)
    return assembly.programs(step, evaluate, batch)


def main(config: Config, directory: Path) -> None:
    """Trains, from the last checkpoint if there is one, and says how well held-out preferences are told."""
    mesh = make_mesh(config.train.mesh)
    run.check(config, mesh)
    with jax.set_mesh(mesh):
        model = run.reading(lambda: trained.load(config.model, mesh), "reading the model")
        check(config, model.config)
        tokenizer, unit = reserving(model.tokenizer, config.delta), config.objective.unit(config.rows)
        single = isinstance(unit, Verdicts)  # preferences are two answers each then
        seen = replace(config, data=Single(config.data, mismatched=False)) if single else config
        data = run.sources(seen, tokenizer, unit)
        encode = model.tokenizer.encode
        assembly = assemble(
            model.config, model.specs, config.delta, config.optim, data.steps, mesh, encode, trained.delta_of
        )  # fmt: skip
        reviewing = Rated(config, directory, data, mesh, partial(rated, model.config, config))
        run.train(config, directory, model, data, assembly, partial(programs, assembly=assembly), reviewing)
