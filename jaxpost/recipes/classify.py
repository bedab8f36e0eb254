# SPDX-License-Identifier: Apache-2.0
"""Classification: of texts, of their words, or by choosing the span of a text that answers a question.

What is trained is any delta with a head in it: by default a deep prompt and a head, which is P-tuning v2.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpost import delta
from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.data.batches.marks import Marks
from jaxpost.data.batches.packing import MOST
from jaxpost.data.rows.labels import Classes, Kind
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.evals import classes as evals
from jaxpost.evals import report
from jaxpost.losses import cross_entropy, masked_mean, place_losses
from jaxpost.models import heads
from jaxpost.models.decoder import Decoder, embed, rows, trunk
from jaxpost.models.remat import Remat
from jaxpost.recipes import feed, run, trained
from jaxpost.recipes.assembly import Assembly, DeltaConfig, abstract_batch, assemble, reserving
from jaxpost.recipes.base import Fresh, Model, Pretrained
from jaxpost.recipes.compiling import Program
from jaxpost.recipes.corpus import Files
from jaxpost.recipes.labels import BuiltIn, Labels, classes_of
from jaxpost.recipes.review import Review
from jaxpost.recipes.run import Batches, Training
from jaxpost.recipes.sft import denominators
from jaxpost.shard import make_mesh
from jaxpost.train.metrics import write_json
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.step import LossFn, make_step

__all__ = ["Batches", "BuiltIn", "Config", "Files", "Fresh", "Optimiser", "Pretrained", "Review", "Training"]
FILE = "classes.json"


@dataclass(frozen=True)
class Config:
    """A run of classification. `kind` says what has a class: a text (`text`, `label`), its words (`tokens`, `labels`),
    or, for `span`, where in a `context` the answer to a `question` starts and ends. What a causal model says of a token
    it knows from what stands before it, so spans are found where what is asked for leads up to them. `labels` are the
    classes' names in their order, if rows name them; without, rows number them from 0. The head has as many classes.
    """

    run: str
    model: Model = Pretrained()
    kind: Kind = "sequence"
    labels: tuple[str, ...] = ()
    delta: DeltaConfig = delta.Both(delta.Prefix(20), delta.Head(2))
    data: Files | BuiltIn = BuiltIn("review_sentiment")
    batches: Batches = Batches()
    optim: Optimiser = Optimiser()
    train: Training = Training()
    review: Review = Review(examples=512, generations=0)


def score(model: Decoder, weights: Tree, batch: Batch, most: int, remat: Remat = "none") -> Array:
    """The scores `[b, s, c]` of every class at every token."""
    places = rows(batch["tokens"], batch["segments"], batch["positions"], most)
    hidden, _ = trunk(model, weights, embed(model, weights, batch["tokens"]), places, remat=remat)
    return heads.classes(model, weights, hidden)


def choices(batch: Batch) -> Array:
    """The segments of the tokens that a span may hold: the places of a prompt are no part of the text."""
    return jnp.where(batch["tokens"] >= 0, batch["segments"], 0)


def judged(kind: Kind, scores: Array, batch: Batch) -> dict[str, Array]:
    """Loss, accuracy (of spans: both ends right) and for spans F1, at every place, to be weighed by the mask."""
    targets = batch["targets"]
    if kind != "span":
        hits = jnp.argmax(scores, axis=-1) == targets
        return {"loss": cross_entropy(scores, targets), "accuracy": hits.astype(jnp.float32)}
    choice = choices(batch)
    ends = jnp.stack([targets & 1, targets >> 1 & 1], axis=-1).astype(jnp.float32)
    losses = jnp.sum(place_losses(scores, choice) * ends, axis=-1) / jnp.maximum(jnp.sum(ends, axis=-1), 1.0)
    said, wanted = evals.best_spans(scores, choice), evals.marked_spans(targets, choice)
    exact = jnp.all(said == wanted, axis=-1).astype(jnp.float32)
    return {"loss": losses, "accuracy": exact, "F1": evals.overlap(said, wanted)}


def make_loss(model: Decoder, config: Config) -> LossFn:
    """The mean negative log-likelihood of the classes of the whole global batch, or of the two ends of its spans."""
    most = MOST if config.batches.packing == "pack" else 1

    def loss(trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None) -> tuple[Array, Metrics]:
        weights = delta.bind(frozen["base"], delta.combine(trainable, frozen["fixed"]), key)
        found = judged(config.kind, score(model, weights, batch, most, config.train.remat), batch)
        means = {name: masked_mean(each, batch["mask"], batch["trained"]) for name, each in found.items()}
        tokens = jnp.sum((batch["segments"] > 0).astype(jnp.float32))
        return means["loss"], {**means, "predictions": jnp.sum(batch["mask"]), "tokens": tokens}

    return loss


def programs(config: Config, assembly: Assembly) -> dict[str, Program]:
    """The jitted programs of a run, with abstract arguments to compile them for."""
    loss = make_loss(assembly.config, config)
    step = make_step(loss, assembly.optimiser, denominators, config.train.microbatches)

    def evaluate(trainable: Tree, frozen: Tree, batch: Batch) -> Metrics:
        return loss(trainable, frozen, None, {**batch, **denominators(batch)}, None)[1]

    batch = abstract_batch(config.batches.rows, config.batches.seq_len, assembly.mesh)
    return assembly.programs(step, evaluate, batch)


@dataclass(frozen=True)
class Scored:
    """What a run has learned, by its held-out rows. A fresh head knows nothing, so nothing is measured before."""

    config: Config
    directory: Path
    model: Decoder
    data: feed.Data
    classes: Classes
    mesh: Mesh

    def before(self, weights: Tree) -> None: ...

    def after(self, weights: Tree, tokenizer: Tokenizer) -> None:
        if not self.config.review.examples:
            return
        sums = run.reading(lambda: self._sums(weights), "measuring the held-out rows")
        if "confusion" in sums:
            told = evals.told(sums["confusion"], self.classes.called)
            found = evals.summary(told)
            run.console().print(evals.table(told))
        else:
            found = {name: float(total / max(1.0, sums["count"])) for name, total in sums.items()}
            found["count"] = int(sums["count"])
        shown = [f"{name} {100 * found[name]:.1f} %" for name in ("accuracy", "macro F1", "F1") if name in found]
        run.console().print(f"held out: {'  '.join(shown)}  ({found['count']:,} labels)", highlight=False)
        if jax.process_index() == 0:
            write_json(self.directory / FILE, found)
            run.console().print(f"report  {report.write_report(self.directory)}", soft_wrap=True, highlight=False)

    def _sums(self, weights: Tree) -> dict[str, np.ndarray]:
        config, most = self.config, MOST if self.config.batches.packing == "pack" else 1

        def measure(weights: Tree, batch: Batch) -> dict[str, Array]:
            scores, mask = score(self.model, weights, batch, most), batch["mask"]
            if config.kind != "span":
                return {"confusion": evals.confusion(scores, batch["targets"], mask), "count": jnp.sum(mask)}
            found = judged(config.kind, scores, batch)
            return {name: masked_mean(each, mask, 1.0) for name, each in found.items()} | {"count": jnp.sum(mask)}

        call, loader, sums = jax.jit(measure), self.data.held_out(), {}
        while sums.get("count", 0) < config.review.examples:
            try:
                batch = run.place(loader.next(), self.mesh)
            except StopIteration:
                break
            sums = {name: sums.get(name, 0) + np.asarray(x, np.float64) for name, x in call(weights, batch).items()}
        return sums


def main(config: Config, directory: Path) -> None:
    """Trains, from the last checkpoint if there is one, and says how well held-out rows are classified."""
    mesh = make_mesh(config.train.mesh)
    run.check(config, mesh)
    with jax.set_mesh(mesh):
        model = run.reading(lambda: trained.load(config.model, mesh), "reading the model")
        classes = classes_of(config.kind, config.labels, config.delta, model.config)
        tokenizer = reserving(model.tokenizer, config.delta)
        labels = Labels(config.data, tokenizer, config.kind, classes)
        data = run.sources(replace(config, data=labels), tokenizer, Marks(config.kind, config.batches.seq_len))
        encode, optim = model.tokenizer.encode, config.optim
        assembly = assemble(
            model.config, model.specs, config.delta, optim, data.steps, mesh, encode, trained.delta_of
        )  # fmt: skip
        scored = Scored(config, directory, model.config, data, classes, mesh)
        run.train(config, directory, model, data, assembly, partial(programs, assembly=assembly), scored)
