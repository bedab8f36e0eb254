# SPDX-License-Identifier: Apache-2.0
"""A run from config to result: what every recipe shares around its loss."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpost import delta
from jaxpost.arrays import Metrics, Tree
from jaxpost.data.batches.packing import Overlong
from jaxpost.data.prepare.cleaning import KEEP_ALL, Cleaning
from jaxpost.data.tokenizers import Tokenizer, TrainOn
from jaxpost.faults import Fault
from jaxpost.models.remat import Remat
from jaxpost.recipes import record
from jaxpost.recipes.assembly import Assembly, abstract_key, reserving
from jaxpost.recipes.base import Loaded
from jaxpost.recipes.compiling import Program, fitted
from jaxpost.recipes.feed import Feed
from jaxpost.recipes.feed import place as place
from jaxpost.recipes.feed import sources as sources
from jaxpost.recipes.review import Reviewing
from jaxpost.recipes.telling import console as console
from jaxpost.recipes.telling import reading as reading
from jaxpost.recipes.telling import say
from jaxpost.shard import MeshShape
from jaxpost.train import loop, metrics, optimisers
from jaxpost.train.checkpoint import Checkpoints
from jaxpost.train.progress import Progress, peak_flops, status
from jaxpost.train.state import State
from jaxpost.train.waiting import Waiting


@dataclass(frozen=True)
class Batches:
    """How rows of text become a batch: `rows` of `seq_len` positions over all devices.

    packing: `pack` puts as many whole examples into a row as fit, none of which sees another; `none` one example a
    row; `blocks` joins documents and cuts them, for language-model tuning.
    cleaning: which rows of files are left out before. cache: whether rows are tokenised before the first step and kept
    for later epochs and runs on this host (`auto`: if the run reads all of them).
    """

    rows: int = 16
    seq_len: int = 512
    packing: Literal["pack", "none", "blocks"] = "pack"
    train_on: TrainOn = "completion"
    overlong: Overlong = "truncate"
    cleaning: Cleaning = KEEP_ALL
    cache: Literal["auto", "always", "never"] = "auto"


@dataclass(frozen=True)
class Training:
    """How long and on what. `steps`, or `epochs` over the data (then steps is 0). Every so many steps: a line of
    metrics, the loss on held-out rows (over `eval_batches` batches), a checkpoint.

    `remat` is what a step keeps for its backward pass and what it computes again (`models.remat`); `auto` takes the
    fastest way that fits into `memory` GiB a device, or, where that is 0, into what is free there.
    """

    steps: int = 200
    epochs: int = 0
    microbatches: int = 1
    remat: Remat = "auto"
    memory: float = 0.0
    mesh: MeshShape = MeshShape()
    seed: int = 0
    log_every: int = 1
    eval_every: int = 100
    eval_batches: int = 8
    save_every: int = 100


BOUNDS = {
    **dict.fromkeys(("batches.rows", "batches.seq_len", "train.microbatches", "review.rows"), (1, math.inf)),
    **dict.fromkeys(("train.steps", "train.epochs", "train.log_every", "train.eval_every"), (0, math.inf)),
    **dict.fromkeys(("train.eval_batches", "train.save_every", "train.memory"), (0, math.inf)),
    **dict.fromkeys(("review.examples", "review.generations"), (0, math.inf)),
    **dict.fromkeys(("optim.lr", "optim.warmup", "optim.weight_decay", "optim.clip"), (0, math.inf)),
}


def check(config: Any, mesh: Mesh) -> None:
    """That numbers make sense and a batch can be cut as the config says, before anything is read."""
    bounded(config, BOUNDS)
    parts = config.train.microbatches
    divided(config.batches.rows, "batches.rows", parts, f"{parts} microbatches", mesh)


def bounded(config: Any, bounds: Mapping[str, tuple[float, float]]) -> None:
    """That the fields of these (dotted) names, if the config has them, lie between the least and the most."""
    for name, (least, most) in bounds.items():
        value = config
        for field in name.split("."):
            value = getattr(value, field, None)
        if value is not None and not value >= least:
            raise Fault(f"{name} is {value}; it must be at least {least}")
        if value is not None and value > most:
            raise Fault(f"{name} is {value}; it must be at most {most}")


def divided(rows: int, what: str, parts: int, said: str, mesh: Mesh) -> None:
    """That every part of a batch, and every device, gets as many rows."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (parts * devices):
        raise Fault(
            f"{what} is {rows}, which {said} on {devices} devices (mesh axes data and fsdp) do not divide; make it a "
            f"multiple of {parts * devices}, or change train.microbatches or train.mesh"
        )


CHANGEABLE = (
    *("review.", "train.steps", "train.save_every", "train.log_every", "batches.cache"),
    *("train.remat", "train.memory"),  # what is kept or made again changes no result beyond rounding
)
"""What a run may go on with other values of."""


def settle(directory: Path, config: Any, begun: bool) -> None:
    """Writes the config into the run directory; refuses to go on with a run under other settings."""
    if begun:
        before = record.read(directory)
        changed = {
            name: values
            for name, values in record.differences(before, config).items()
            if name != "run" and not name.startswith(CHANGEABLE)
        }
        if changed:
            told = [f"{name} was {old!r} and is now {new!r}" for name, (old, new) in changed.items()]
            raise Fault(
                f"{directory} holds a run with other settings: {'; '.join(told)}. Go on with the same ones, or choose "
                "another directory with --run"
            )
    if jax.process_index() == 0:
        record.write(directory, config)


class Reviewed(Protocol):
    """Looks at a run's weights, each time with what it measured before in the run's directory."""

    def before(self, weights: Tree) -> None: ...
    def after(self, weights: Tree, tokenizer: Tokenizer) -> None: ...


@dataclass(frozen=True)
class Session:
    """All that stays as it is while a run trains."""

    config: Any
    directory: Path
    model: Loaded
    data: Feed
    assembly: Assembly
    frozen: Tree

    def weights(self, state: State) -> Tree:
        """The model as it is at a state."""
        return delta.bind(self.frozen["base"], delta.role(delta.combine(state.trainable, self.frozen["fixed"])))


def train(
    config: Any,
    directory: Path,
    model: Loaded,
    data: Feed,
    assembly: Assembly,
    programs: Callable[[Any], Mapping[str, Program]],
    reviewing: Reviewed | None = None,
) -> State:
    """Runs the loop around a recipe's programs (of a config, which may be this one with another `train.remat`), with
    checkpoints, metrics and progress, and reviews the result: as a language model, unless the recipe knows better."""
    begun_at = time.monotonic()
    if data.length > model.config.max_length:
        what = "rollout.prompt_tokens + rollout.answer_tokens" if hasattr(config, "rollout") else "batches.seq_len"
        raise Fault(
            f"{what} is {data.length}, and the model knows {model.config.max_length} positions "
            f"(max_position_embeddings of its config.json); lower {what}"
        )
    with Checkpoints(directory / "checkpoints") as checkpoints:
        begun = checkpoints.step()
        settle(directory, config, begun is not None)
        state, fixed = assembly.make(jax.random.fold_in(jax.random.key(config.train.seed), 1), model.weights)
        session = Session(config, directory, model, data, assembly, {"base": model.weights, "fixed": fixed})
        reviewing = reviewing or Reviewing(config.review, config.data, directory, model.config, model.tokenizer)
        # A fresh prompt or prefix is not nothing: what it is added to is measured without it.
        plain = model.weights if config.delta.virtual else session.weights(state)
        reviewing.before(plain)
        del plain  # of a run that goes on it holds the state that it began with
        if begun is not None:
            saved = checkpoints.restore(assembly.state)
            state = saved.state
            data.resume(saved.sources)
            say(f"going on from step {begun} of {directory}")
        remat = str(metrics.read_facts(directory).get("remat", "")) if begun is not None else ""
        if int(state.step) < data.steps:
            compiled, remat = fitted(config, programs, assembly.mesh, partial(status, console=console()), remat)
            if jax.process_index() == 0:
                metrics.write_facts(directory, {**metrics.read_facts(directory), "remat": remat})
            with _log(directory, begun or 0) as log, closing(data):
                state = _fit(session, state, compiled, checkpoints, log)
            checkpoints.wait()  # the review takes a while, and must not be what a failed save is told after
    if jax.process_index() == 0:
        metrics.write_facts(directory, _facts(session, state, time.monotonic() - begun_at) | {"remat": remat})
    for line in data.told():
        say(line)
    reviewing.after(session.weights(state), reserving(model.tokenizer, config.delta))
    return state


@contextmanager
def _log(directory: Path, step: int) -> Iterator[Callable[[int, Metrics], None]]:
    """Where metrics are written: by the first process, which knows those of all."""
    if jax.process_index() > 0:
        yield lambda step, values: None
        return
    with metrics.Writer(directory, step) as writer:
        yield writer.write


def _fit(
    session: Session,
    state: State,
    compiled: Mapping[str, Any],
    checkpoints: Checkpoints,
    log: Callable[[int, Metrics], None],
) -> State:
    config, data, assembly = session.config, session.data, session.assembly
    key = jax.device_put(jax.random.key(config.train.seed), abstract_key(assembly.mesh).sharding)
    # All of them now: asking for one at a time would queue behind the running step, and the host would wait for it.
    updates = data.steps * data.updates
    rates = np.asarray(jax.vmap(optimisers.schedule(config.optim, updates))(np.arange(updates)))
    best = min((_best(data, entry) for entry in metrics.read(session.directory)), default=math.inf)
    peak = peak_flops(jax.devices()[0].device_kind)
    bar = Progress(
        data.steps,
        int(state.step),
        flops_per_token=assembly.flops_per_token,
        peak=peak and peak * assembly.mesh.size,
        console=console(),
        shows=data.shows,
        waits=data.waits,
    )
    data.begin(session.frozen, compiled, assembly.mesh)

    waiting, places = Waiting(), data.places

    def report(step: int, values: Metrics) -> None:
        fetched: dict[str, float] = {name: float(np.asarray(value)) for name, value in jax.device_get(values).items()}
        bar.update(step, int(fetched["tokens"]), fetched[data.shows], waiting.share)
        if (config.train.log_every and step % config.train.log_every == 0) or step == data.steps:
            measured = {"tokens_per_second": bar.tokens_per_second, "data_wait": waiting.share}
            pace = {name: value for name, value in measured.items() if value is not None}
            log(
                step,
                {**fetched, "lr": float(rates[step * data.updates - 1]), "fill": fetched["tokens"] / places, **pace},
            )

    def save(step: int, state: State) -> None:
        checkpoints.save(step, state, data.source.save())

    def evaluate(step: int, state: State) -> None:
        nonlocal best
        with bar.status("evaluating"):
            found = {f"eval_{name}": value for name, value in data.measure(state).items()}
        log(step, found)
        if (now := _best(data, found)) < best:
            best = now
            checkpoints.save(step, state, data.source.save(), best=True)

    hooks = [loop.Hook(config.train.eval_every, evaluate), loop.Hook(config.train.save_every, save)]
    with bar:
        if config.train.eval_every and int(state.step) == 0:
            evaluate(0, state)
        state = loop.fit(
            compiled["step"],
            state,
            session.frozen,
            data.source,
            key,
            steps=data.steps,
            place=lambda batch: place(batch, assembly.mesh),
            report=report,
            hooks=hooks,
            save=save,
            waiting=waiting,
        )
        if config.train.eval_every and data.steps % config.train.eval_every:
            evaluate(data.steps, state)
    return state


def _best(data: Feed, entry: Mapping[str, Any]) -> float:
    """What the best checkpoint is best by, of what a line of metrics says is held out; infinity if it says nothing."""
    found = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
    value = data.better(found) if found else math.inf
    return math.inf if math.isnan(value) else value


def _facts(session: Session, state: State, seconds: float) -> dict[str, str | int | float]:
    return {
        **metrics.environment(),
        "mesh": ", ".join(f"{name} {size}" for name, size in session.assembly.mesh.shape.items()),
        "parameters": session.assembly.parameters,
        "trained parameters": session.assembly.trained_parameters,
        "steps": int(state.step),
        **session.data.facts(),
        "seconds since the last start": round(seconds, 1),
        **session.config.delta.facts(delta.combine(state.trainable, session.frozen["fixed"])),
    }
