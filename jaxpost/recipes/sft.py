# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning: instruction tuning on a mixture of tasks, tuning on files of rows, language-model tuning.

Full tuning is a delta like any other (`Full()`), and so is pre-training: of a `Fresh` model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxpost import delta
from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.data.batches.packing import MOST
from jaxpost.kernels.linear_xent import linear_xent
from jaxpost.losses import cross_entropy, z_loss
from jaxpost.models.decoder import Decoder, contract_head, embed, head_weights, rows, trunk
from jaxpost.recipes import run, trained
from jaxpost.recipes.assembly import Assembly, DeltaConfig, abstract_batch, assemble, reserving
from jaxpost.recipes.base import Fresh, Model, Pretrained
from jaxpost.recipes.compiling import Program
from jaxpost.recipes.corpus import Files, Mixed, Tasks, Tfds, Tokens, World
from jaxpost.recipes.review import Review
from jaxpost.recipes.run import Batches, Training
from jaxpost.shard import make_mesh
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.step import LossFn, make_step

__all__ = ["Batches", "Config", "Files", "Fresh", "Mixed", "Optimiser", "Pretrained", "Review", "Tasks", "Tfds"]
__all__ += ["Tokens", "Training", "World"]


@dataclass(frozen=True)
class Loss:
    """What is minimised: the mean negative log-likelihood of the trained tokens of the whole global batch.

    `neftune` adds uniform noise of this size, over the square root of an example's length times the width, to the
    embeddings (Jain et al. 2023, https://arxiv.org/abs/2310.05914; 5 is customary). `z_loss` weighs the squared log of
    the softmax's normaliser (1e-4 is customary). Logits exist for about `chunk` tokens of a device at a time.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    neftune: float = 0.0
    chunk: int = 2048


@dataclass(frozen=True)
class Config:
    """A run of supervised fine-tuning. `run` is its directory; a run that finds a checkpoint there goes on from it."""

    run: str
    model: Model = Pretrained()
    delta: DeltaConfig = delta.Lora()
    data: Tasks | Files | Tfds | Mixed | Tokens | World = Tasks()
    batches: Batches = Batches()
    loss: Loss = Loss()
    optim: Optimiser = Optimiser()
    train: Training = Training()
    review: Review = Review()


def make_loss(model: Decoder, config: Config) -> LossFn:
    """Completion (or language-model) loss of a batch in the loader's format. Without a key there is neither dropout
    nor noise: the same function evaluates."""
    most = MOST if config.batches.packing == "pack" else 1

    def token_loss(logits: Array, targets: Array) -> Array:
        losses = cross_entropy(logits, targets, config.loss.label_smoothing)
        return losses + config.loss.z_loss * z_loss(logits) if config.loss.z_loss else losses

    def loss(trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None) -> tuple[Array, Metrics]:
        drop_key, noise_key = (None, None) if key is None else jax.random.split(key)
        weights = delta.bind(frozen["base"], delta.combine(trainable, frozen["fixed"]), drop_key)
        x = embed(model, weights, batch["tokens"])
        if config.loss.neftune and noise_key is not None:
            x = noisy(x, batch["segments"], config.loss.neftune, noise_key)
        places = rows(batch["tokens"], batch["segments"], batch["positions"], most)
        hidden, _ = trunk(model, weights, x, places, remat=config.train.remat)
        scale = batch["mask"] / batch["trained"]
        head = head_weights(model, weights)
        total, losses, hits = linear_xent(
            contract_head(model), token_loss, head, hidden, batch["targets"], scale, config.loss.chunk
        )
        return total, {
            "loss": jnp.sum(losses * scale),
            "accuracy": jnp.sum(hits * scale),
            "predictions": jnp.sum(batch["mask"]),
            "tokens": jnp.sum((batch["segments"] > 0).astype(jnp.float32)),
        }

    return loss


def denominators(batch: Batch) -> Mapping[str, Array]:
    """How many tokens the whole global batch trains: what makes the loss independent of how the batch is cut."""
    return {"trained": jnp.maximum(jnp.sum(batch["mask"]), 1.0)}


def noisy(x: Array, segments: Array, size: float, key: Key) -> Array:
    """NEFTune: `x + U(-1, 1) * size / sqrt(L * d)`, L being the length of the token's own example, so that neither
    padding nor what else is packed into the row changes an example's noise."""
    same = jax.vmap(lambda row: jnp.zeros(row.shape[0] + 1).at[row].add(1.0)[row])(segments)
    noise = jax.random.uniform(key, x.shape, minval=-1.0, maxval=1.0)
    scale = size / jnp.sqrt(same * x.shape[-1])
    return x + (noise * scale[..., None]).astype(x.dtype)


def programs(config: Config, assembly: Assembly) -> dict[str, Program]:
    """The jitted programs of a run, with abstract arguments to compile them for."""
    loss = make_loss(assembly.config, config)
    step = make_step(loss, assembly.optimiser, denominators, config.train.microbatches)

    def evaluate(trainable: Tree, frozen: Tree, batch: Batch) -> Metrics:
        return loss(trainable, frozen, None, {**batch, **denominators(batch)}, None)[1]

    batch = abstract_batch(config.batches.rows, config.batches.seq_len, assembly.mesh)
    return assembly.programs(step, evaluate, batch)


def main(config: Config, directory: Path) -> None:
    """Trains, from the last checkpoint if there is one, and shows what was learned."""
    mesh = make_mesh(config.train.mesh)
    run.check(config, mesh)
    with jax.set_mesh(mesh):
        model = run.reading(lambda: trained.load(config.model, mesh), "reading the model")
        data = run.sources(config, reserving(model.tokenizer, config.delta))
        assembly = assemble(
            model.config,
            model.specs,
            config.delta,
            config.optim,
            data.steps,
            mesh,
            model.tokenizer.encode,
            trained.delta_of,
        )
        run.train(config, directory, model, data, assembly, partial(programs, assembly=assembly))
