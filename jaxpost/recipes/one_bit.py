# SPDX-License-Identifier: Apache-2.0
"""BitDelta (Liu et al. 2024, https://arxiv.org/abs/2402.10193): what a run made of its base as one bit a weight.

Of every matrix of the blocks the signs of its change are kept and one scale, which starts as the change's mean size;
all scales are then trained until the model's logits are those of the tuned one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost import delta, params
from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.data.batches.packing import MOST
from jaxpost.delta import bitdelta
from jaxpost.delta.bitdelta import BitDelta
from jaxpost.evals import report
from jaxpost.faults import Fault
from jaxpost.kernels.linear_xent import linear_xent
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder, contract_head, embed, head_weights, trunk
from jaxpost.recipes import run, sft, trained
from jaxpost.recipes.assembly import Assembly, abstract_batch, assemble
from jaxpost.recipes.base import Loaded, Model, Pretrained
from jaxpost.recipes.compiling import Program
from jaxpost.recipes.corpus import Files, Mixed, Tasks, Tfds, Tokens
from jaxpost.recipes.review import Review, measure, predictions, suites
from jaxpost.recipes.run import Batches, Training
from jaxpost.shard import make_mesh
from jaxpost.train import metrics
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.step import LossFn, make_step

FILE, TEACHER = "one_bit.safetensors", "(teacher)"


@dataclass(frozen=True)
class Config:
    """A run that compresses the run `of`, whose base `model` must be, and distils the scales on the rows of `data`, of
    which every token counts. `delta.file` is written by the run itself, and then all that it needs besides the base.
    Logits exist for about `chunk` tokens of a device at a time."""

    run: str
    of: str
    model: Model = Pretrained()
    delta: BitDelta = BitDelta()
    data: Tasks | Files | Tfds | Mixed | Tokens = Tasks()
    batches: Batches = Batches(rows=4, seq_len=128)
    optim: Optimiser = Optimiser(lr=1e-4, schedule="constant")
    train: Training = Training()
    review: Review = Review()
    chunk: int = 2048


def make_loss(model: Decoder, config: Config) -> LossFn:
    """The mean, over all tokens and the vocabulary, of the squared difference between the logits of the one-bit model
    and of the tuned one, whose delta stands among what is fixed."""
    most = MOST if config.batches.packing == "pack" else 1
    contract = contract_head(model)

    def apart(hidden: Array, heads: Tree) -> Array:
        mine, other = jnp.split(hidden, 2, axis=-1)
        return contract(mine, heads["mine"]) - contract(other, heads["other"])

    def loss(trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None) -> tuple[Array, Metrics]:
        places = decoder.rows(batch["tokens"], batch["segments"], batch["positions"], most)
        edits = {"mine": delta.combine(trainable, frozen["fixed"]), "other": frozen["fixed"][TEACHER]}
        hidden, heads = {}, {}
        for name, edit in edits.items():
            weights = delta.bind(frozen["base"], edit)
            x = embed(model, weights, batch["tokens"])
            hidden[name], _ = trunk(model, weights, x, places, remat=config.train.remat)
            heads[name] = head_weights(model, weights)
        both = jnp.concatenate([hidden["mine"], jax.lax.stop_gradient(hidden["other"])], axis=-1)
        seen = (batch["segments"] > 0).astype(jnp.float32)
        scale = seen / batch["seen"]
        total, _, _ = linear_xent(
            apart, lambda logits, _: jnp.mean(logits**2, axis=-1), heads, both, batch["targets"], scale, config.chunk
        )
        return total, {"loss": total, "tokens": jnp.sum(seen)}

    return loss


def denominators(batch: Batch) -> Mapping[str, Array]:
    return {"seen": jnp.maximum(jnp.sum((batch["segments"] > 0).astype(jnp.float32)), 1.0)}


def programs(config: Config, assembly: Assembly) -> dict[str, Program]:
    """The step matches logits; what is measured of held-out rows meanwhile is their own likelihood, as in `sft`."""
    step = make_step(make_loss(assembly.config, config), assembly.optimiser, denominators, config.train.microbatches)
    plain = sft.Config("", batches=config.batches, train=config.train, loss=sft.Loss(chunk=config.chunk))
    likelihood = sft.make_loss(assembly.config, plain)

    def evaluate(trainable: Tree, frozen: Tree, batch: Batch) -> Metrics:
        return likelihood(trainable, frozen, None, {**batch, **sft.denominators(batch)}, None)[1]

    batch = abstract_batch(config.batches.rows, config.batches.seq_len, assembly.mesh)
    return assembly.programs(step, evaluate, batch)


def beside(assembly: Assembly, teacher: delta.Delta) -> Assembly:
    """The assembly with another delta among what is fixed."""
    places = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), teacher)

    def make(key: Key, weights: Tree) -> tuple[Any, Tree]:
        state, fixed = assembly.make(key, weights)
        return state, {**fixed, TEACHER: teacher}

    fixed = {**assembly.frozen["fixed"], TEACHER: places}
    return replace(assembly, make=make, frozen={**assembly.frozen, "fixed": fixed})


def compressed(model: Loaded, teacher: delta.Delta, config: Config) -> delta.Delta:
    """The one-bit delta that is nearest to the tuned model's change."""
    specs, fine = decoder.specs(model.config), delta.bind(model.weights, teacher)
    made = delta.one_bit(fine, model.weights, specs, config.delta.targets)
    if odd := sorted(made.keys() - config.delta(specs).keys()):
        raise Fault(f"{config.of} fills {', '.join(odd)}, where its base has nothing: there is no change to compress")
    return made


def scores(config: Config, model: Loaded, weights: Tree) -> dict[str, Any]:
    """How well a model predicts held-out rows, and does its tasks on the mean if there are any."""
    rows = 4 * config.review.rows
    found: dict[str, Any] = {"held-out rows": predictions(config, model.config, model.tokenizer, weights, rows)}
    if parts := suites(config.data, config.review.examples):
        each, _ = measure(parts, model.config, model.tokenizer, weights, config.review.rows)
        found["tasks"] = f"{100 * sum(each.values()) / len(each):.1f} %"
    return found


def main(config: Config, directory: Path) -> None:
    """Compresses (once), distils, from the last checkpoint if there is one, and shows what each of the two left of the
    tuned model."""
    mesh = make_mesh(config.train.mesh)
    run.check(config, mesh)
    file = directory / FILE
    with jax.set_mesh(mesh):
        if trained.base_of(config.of) != config.model:
            raise Fault(f"{config.of} is a run over another model than this config's; give both the same")
        model = run.reading(lambda: trained.load(config.model, mesh), "reading the model")
        teacher = run.reading(lambda: trained.delta_of(config.of), f"reading {config.of}")
        if not file.exists():
            run.reading(lambda: bitdelta.write(file, compressed(model, teacher, config)), "compressing")
        config = replace(config, delta=replace(config.delta, file=str(file)))
        data = run.sources(config, model.tokenizer)
        assembly = assemble(model.config, model.specs, config.delta, config.optim, data.steps, mesh)
        assembly = beside(assembly, teacher)
        state = run.train(config, directory, model, data, assembly, partial(programs, assembly=assembly))
        start, fixed = assembly.make(jax.random.key(0), model.weights)
        whole = {"tuned": teacher}
        whole |= {"one bit": delta.combine(start.trainable, fixed), "distilled": delta.combine(state.trainable, fixed)}
        found = {}
        for name, edit in whole.items():
            weights = delta.bind(model.weights, edit)
            found[name] = run.reading(lambda weights=weights: scores(config, model, weights), f"measuring: {name}")
    if jax.process_index() == 0:
        tell(directory, found | {"size": {"": size(model, file)}})


def size(model: Loaded, file: Path) -> str:
    kept = params.count(decoder.specs(model.config)) * jnp.dtype(model.config.dtype).itemsize
    there = file.stat().st_size
    return f"{there / 2**20:.1f} MiB; the tuned weights take {kept / 2**20:.1f} MiB, {kept / there:.1f} times as much"


def tell(directory: Path, found: Mapping[str, Mapping[str, str]]) -> None:
    """Adds to the run's facts, to its report, and to what stands on the terminal."""
    facts = {f"{name} {what}".strip(): said for name, each in found.items() for what, said in each.items()}
    path = directory / metrics.FACTS
    metrics.write_facts(directory, json.loads(path.read_text(encoding="utf-8")) | facts)
    report.write_report(directory)
    width = max(map(len, facts))
    for name, said in facts.items():
        run.console().print(f"{name:<{width}}  {said}", highlight=False, markup=False, soft_wrap=True)
