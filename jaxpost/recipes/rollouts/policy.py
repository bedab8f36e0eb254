# SPDX-License-Identifier: Apache-2.0
"""A policy over its own answers: what recipes that learn from rollouts share. A batch is as `rollouts` has it."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpost import delta, shard
from jaxpost.arrays import Array, Batch, Float, Key, Metrics, Tree
from jaxpost.faults import Fault
from jaxpost.losses import masked_mean, token_log_probs_and_entropy
from jaxpost.losses.aggregate import Counts, counts
from jaxpost.models import heads
from jaxpost.models.decoder import Decoder, contract_head, head_weights
from jaxpost.models.remat import Remat
from jaxpost.recipes import base, run, trained
from jaxpost.recipes.assembly import Assembly, abstract_batch, abstract_key, assemble, reserving
from jaxpost.recipes.compiling import Program, program
from jaxpost.recipes.likelihood import gathered, hidden_states
from jaxpost.recipes.review import Reviewing
from jaxpost.recipes.rollouts import scoring, text
from jaxpost.recipes.rollouts.prompts import Prompts
from jaxpost.recipes.rollouts.rollout import MIXED, Rollout, Rollouts
from jaxpost.recipes.rollouts.scoring import Scoring
from jaxpost.shard import make_mesh
from jaxpost.train.step import LossFn, in_parts, make_rounds, make_step


class Said(NamedTuple):
    """Of every place of the answers `[b, r]`: log-probabilities, entropies, a critic's value."""

    log_probs: Float[Array, "b r"]
    entropy: Float[Array, "b r"]
    values: Float[Array, "b r"] | None


def answers(
    model: Decoder,
    weights: Tree,
    batch: Batch,
    temperature: float,
    *,
    remat: Remat = "none",
    entropy: bool = False,
    critic: Tree | None = None,
    shares: Array | float = 1.0,
    chunk: int = 2048,
) -> Said:
    """One pass over prompts and answers. Logits are made of the answers' places alone. The entropy has a gradient if it
    is asked for. `critic` is the tree whose head values each place: another, or the policy's own; then its hidden
    states serve both, and `shares` is by how much of the values' gradient they learn: at 0 the head learns alone."""
    length = batch["answers"].shape[1]
    hidden = gathered(hidden_states(model, weights, batch, 1, remat), batch["start"], length)
    log_probs, undecided = token_log_probs_and_entropy(
        contract_head(model), head_weights(model, weights), hidden, batch["answers"], temperature, chunk
    )
    found = log_probs, undecided if entropy else jax.lax.stop_gradient(undecided)
    if critic is None:
        return Said(*found, None)
    if critic is not weights:
        hidden = gathered(hidden_states(model, critic, batch, 1, remat), batch["start"], length)
    else:
        rest = jax.lax.stop_gradient(hidden)
        hidden = rest + (shares * (hidden - rest)).astype(hidden.dtype)
    return Said(*found, heads.score(model, critic, hidden))


def roles(made: delta.Delta, base: Tree, key: Key | None = None) -> tuple[Tree, Tree | None]:
    """The policy's tree and its critic's: the same where one delta has a head for both, None where there is no head."""
    policy = delta.bind(base, delta.role(made), key)
    if other := delta.role(made, delta.CRITIC):
        return policy, delta.bind(base, other, None if key is None else jax.random.fold_in(key, 1))
    return policy, policy if "heads/classes" in made else None


def observer(
    model: Decoder, temperature: float, wanted: Sequence[str], parts: int
) -> Callable[[Tree, Tree, Batch], dict[str, Array]]:
    """The program that adds to a rollout what is wanted of this: by its policy `log_probs`, by its critic `values`, and
    by the model that the run started from `reference_log_probs`; rows in so many parts."""

    def observe(trainable: Tree, frozen: Tree, batch: Batch) -> dict[str, Array]:
        policy, critic = roles(delta.combine(trainable, frozen["fixed"]), frozen["base"])

        def part(batch: Batch) -> dict[str, Array]:
            said = answers(model, policy, batch, temperature, critic=critic if "values" in wanted else None)
            found = {"log_probs": said.log_probs, "values": said.values}
            if "reference_log_probs" in wanted:
                found["reference_log_probs"] = answers(model, frozen["base"], batch, temperature).log_probs
            return {name: found[name] for name in wanted}

        return in_parts(part, batch, parts)

    return observe


def denominators(batch: Batch) -> Mapping[str, Array]:
    """How many tokens and answers a whole minibatch has, and how many trained tokens the text beside them."""
    whole, trained = counts(batch["mask"]), batch.get(f"{MIXED}mask")
    found = {"whole_tokens": whole.tokens, "whole_sequences": whole.sequences}
    return found if trained is None else {**found, "whole_text": jnp.maximum(jnp.sum(trained), 1.0)}


def whole(batch: Batch) -> Counts:
    return Counts(batch["whole_tokens"], batch["whole_sequences"])


def reported(batch: Batch, names: Sequence[str]) -> Metrics:
    """What there is to say of a rollout, whatever is learned from it."""
    mask, tokens = batch["mask"], jnp.sum((batch["segments"] > 0).astype(jnp.float32))
    mean, deviation = _moments(batch["reward"])
    found = {"reward": mean, "reward_deviation": deviation}
    found |= {f"reward/{name}": _moments(batch["scores"][:, k])[0] for k, name in enumerate(names)}
    lengths = jnp.sum((batch["segments"] > 0).astype(jnp.float32), axis=1) - 1 - batch["start"]
    found |= {"length": jnp.mean(lengths), "ended": jnp.mean(batch["ended"].astype(jnp.float32))}
    if "log_probs" in batch:
        gap = jnp.abs(batch["log_probs"] - batch["sampler_log_probs"])
        found["sampler_gap"] = jnp.max(jnp.where(mask > 0, gap, 0.0))
    if "reference_log_probs" in batch:
        differences = (batch["log_probs"] - batch["reference_log_probs"]) * mask
        found["kl"] = masked_mean(jnp.sum(differences, axis=1), jnp.any(mask > 0, axis=1).astype(jnp.float32))
    return {**found, "tokens": tokens, "predictions": jnp.sum(mask)}


def _moments(rewards: Float[Array, "b"]) -> tuple[Array, Array]:
    """Mean and deviation of those that there are; not a number if there are none."""
    known = (~jnp.isnan(rewards)).astype(jnp.float32)
    mean = jnp.where(jnp.any(known > 0), masked_mean(rewards, known), jnp.nan)
    return mean, jnp.sqrt(masked_mean((rewards - mean) ** 2, known))


def abstract_rollout(rollout: Rollout, mesh: Any, sources: int = 0, observed: Sequence[str] = ()) -> dict[str, Any]:
    """A rollout without its numbers: as it is given, or, with so many sources of rewards, with what is added to it."""
    place, rows, length = shard.rows(mesh), rollout.rows, rollout.answer_tokens
    shapes: dict[str, Any] = dict.fromkeys(("tokens", "segments", "positions"), ((rows, rollout.length), jnp.int32))
    shapes |= {"start": ((rows,), jnp.int32), "ended": ((rows,), jnp.int32), "answers": ((rows, length), jnp.int32)}
    shapes |= dict.fromkeys(("mask", "sampler_log_probs"), ((rows, length), jnp.float32))
    if sources:
        shapes |= {"scores": ((rows, sources), jnp.float32), "reward": ((rows,), jnp.float32)}
        shapes |= {"group": ((rows,), jnp.int32), **dict.fromkeys(observed, ((rows, length), jnp.float32))}
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=place) for name, (shape, dtype) in shapes.items()}


class Learning(NamedTuple):
    """What a recipe makes of a rollout: the loss of a minibatch; what has to be observed of the whole before; what is
    made of the whole, and told of it; what the next step finds in `extra`."""

    loss: LossFn
    observed: Sequence[str]
    prepare: Callable[[Batch, Tree], tuple[Batch, Metrics]]
    finish: Callable[[Tree, Metrics], Tree] = lambda extra, metrics: extra


def programs(config: Any, assembly: Assembly, judges: Mapping[str, Tree], learning: Learning) -> dict[str, Program]:
    """The jitted programs of a run, with abstract arguments to compile them for."""
    loss, observed, prepare, finish = learning
    update = make_step(loss, assembly.optimiser, denominators, config.train.microbatches)
    step = make_rounds(update, prepare, finish, config.epochs, config.minibatches)
    model, mesh, rollout = assembly.config, assembly.mesh, config.rollout
    given = abstract_rollout(rollout, mesh)
    batch = abstract_rollout(rollout, mesh, len(config.rewards), observed)
    if getattr(config, "pretraining", None) is not None:
        rows = abstract_batch(rollout.rows, config.pretraining.seq_len, mesh)
        batch |= {f"{MIXED}{name}": x for name, x in rows.items()}
    state, frozen = assembly.state, assembly.frozen
    parts = config.train.microbatches * config.minibatches
    made = {"step": program(step, mesh, state, frozen, batch, abstract_key(mesh), donated=(0,))}
    if observed:
        observe = observer(model, rollout.temperature, observed, parts)
        made["observe"] = program(observe, mesh, state.trainable, frozen, given)
    for name, weights in judges.items():

        def score(weights: Tree, batch: Batch) -> Array:
            return in_parts(partial(scoring.model_scores, model, weights), batch, parts)

        made[f"score/{name}"] = program(score, mesh, _abstract(weights), given)
    return made


PARTS = ("low", "high", "kl", "kl_in_reward", "value_weight", "critic_steps")
BOUNDS = {
    **dict.fromkeys((*(f"objective.{name}" for name in PARTS), "penalty.coefficient"), (0, math.inf)),
    **dict.fromkeys((f"objective.{name}" for name in ("top_entropy", "gamma", "lam")), (0, 1)),
    **dict.fromkeys(("epochs", "minibatches"), (1, math.inf)),
}


def check(config: Any, mesh: Mesh) -> None:
    """That numbers make sense and a rollout can be cut as the config says, before anything is read."""
    run.bounded(config, run.BOUNDS | BOUNDS)
    if config.train.epochs or not config.train.steps:
        raise Fault(
            f"train.steps is {config.train.steps} and train.epochs {config.train.epochs}; answers are sampled anew at "
            "every step, so set train.steps, and leave train.epochs 0"
        )
    minibatches, parts = config.minibatches, config.train.microbatches
    said = f"{minibatches} minibatches of {parts} microbatches"
    run.divided(config.rollout.rows, "rollout.prompts * rollout.samples", minibatches * parts, said, mesh)


def train(config: Any, directory: Path, programs: Callable[[Any, Assembly, Mapping[str, Tree]], dict[str, Program]]):
    """Runs the loop of a recipe that learns from its own answers."""
    mesh, rollout, seed = make_mesh(config.train.mesh), config.rollout, config.train.seed
    check(config, mesh)
    scores = Scoring(config.rewards, config.unscored)
    with jax.set_mesh(mesh):
        plain = run.reading(lambda: base.plain(config.model, mesh), "reading the model")
        model = trained.over(plain, config.model, mesh)
        tokenizer = reserving(model.tokenizer, config.delta)
        judges = run.reading(lambda: scoring.loaded(scores, plain, config.model, mesh), "reading the reward models")
        rows = run.reading(lambda: (config.data.training(seed), config.data.held_out(seed)), "reading the prompts")

        def prompts(rows: Any, seed: int | None) -> Prompts:
            return Prompts(rows, tokenizer, config.data.columns, rollout.prompt_tokens, rollout.overlong, seed)

        prompts(rows[0], seed).next()  # whether there are any that fit is said before anything is compiled
        if config.train.eval_every and config.train.eval_batches and not len(rows[1]):
            raise Fault(
                f"train.eval_every is {config.train.eval_every}, but no prompts are held out; set it to 0, or raise "
                "data.hold"
            )
        updates = config.epochs * config.minibatches
        assembly = assemble(
            model.config,
            model.specs,
            config.delta,
            config.optim,
            config.train.steps * updates,
            mesh,
            model.tokenizer.encode,
            trained.delta_of,
            config.extra,
        )
        feed = Rollouts(
            rollout=rollout,
            model=model.config,
            tokenizer=tokenizer,
            prompts=prompts(rows[0], seed),
            held=lambda: prompts(rows[1], None),
            scoring=scores,
            judges=judges,
            seed=seed,
            steps=config.train.steps,
            updates=updates,
            eval_batches=config.train.eval_batches,
            until=config.stop_at,
            mixed=text.loader(config, tokenizer),
        )
        reviewing = Reviewing(
            config.review, config.data, directory, model.config, model.tokenizer, rollout.answer_tokens
        )
        run.train(
            config, directory, model, feed, assembly, lambda config: programs(config, assembly, judges), reviewing
        )


def _abstract(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def check_critic(trainable: Tree) -> None:
    """Raises for a delta that has no head of one class to value answers with."""
    paths = "heads/classes", f"{delta.CRITIC}heads/classes"
    head = next((trainable[path] for path in paths if path in trainable), None)
    if head is None or head.value.shape[-1] != 1:
        raise Fault("delta: PPO needs a critic; choose Both(Lora(), Head(1)), or ActorCritic() for one of its own")
