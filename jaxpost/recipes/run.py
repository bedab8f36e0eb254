# SPDX-License-Identifier: Apache-2.0
"""A run from config to result: what every recipe shares around its loss."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jaxpost import delta, shard
from jaxpost.arrays import Batch, HostBatch, Metrics, Tree
from jaxpost.data.batches.loader import Counts, Loader, Single, Unit, counts_of, join
from jaxpost.data.batches.packing import Overlong
from jaxpost.data.batches.prefetch import Prefetch
from jaxpost.data.prepare.cleaning import KEEP_ALL, Cleaning
from jaxpost.data.tokenizers import Tokenizer, TrainOn
from jaxpost.faults import Fault
from jaxpost.models.remat import Remat
from jaxpost.recipes import record
from jaxpost.recipes.assembly import Assembly, Program, reserving
from jaxpost.recipes.base import Loaded
from jaxpost.recipes.prepared import prepared
from jaxpost.recipes.review import Reviewing
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
    metrics, the loss on held-out rows (over `eval_batches` batches), a checkpoint."""

    steps: int = 200
    epochs: int = 0
    microbatches: int = 1
    remat: Remat = "none"
    mesh: MeshShape = MeshShape()
    seed: int = 0
    log_every: int = 1
    eval_every: int = 100
    eval_batches: int = 8
    save_every: int = 100


LEAST = {
    **dict.fromkeys(("batches.rows", "batches.seq_len", "train.microbatches", "review.rows"), 1),
    **dict.fromkeys(("train.steps", "train.epochs", "train.log_every", "train.eval_every", "train.eval_batches"), 0),
    **dict.fromkeys(("train.save_every", "review.examples", "review.generations"), 0),
    **dict.fromkeys(("optim.lr", "optim.warmup", "optim.weight_decay", "optim.clip"), 0),
}


@dataclass(frozen=True)
class Data:
    """Where a run's batches come from, how many steps they are to last, and a fresh pass over the held-out ones."""

    source: Prefetch
    loader: Loader
    steps: int
    held_out: Callable[[], Loader]


def sources(config: Any, tokenizer: Tokenizer, unit: Unit = Single()) -> Data:  # noqa: B008 (it has no state)
    """This process's share of the training stream and of the held-out rows, each of which is a `unit`."""
    train, batches = config.train, config.batches
    if (train.steps > 0) == (train.epochs > 0):
        raise Fault(
            f"train.steps is {train.steps} and train.epochs {train.epochs}; set one of them and leave the other 0"
        )
    options: dict[str, Any] = {
        "batch": batches.rows,
        "seq_len": batches.seq_len,
        "packing": batches.packing,
        "train_on": batches.train_on,
        "overlong": batches.overlong,
        "columns": config.data.columns,
        "unit": unit,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    columns, places = config.data.columns, batches.rows * batches.seq_len
    rows = reading(lambda: config.data.training(train.seed), "reading the data")
    rows = prepared(rows, tokenizer, batches, columns, None if train.epochs else train.steps * places, console(), unit)
    loader = Loader(rows, tokenizer, seed=train.seed, epochs=train.epochs or None, **options)
    steps = train.steps or _counted(loader)
    kept = reading(lambda: config.data.held_out(train.seed), "reading the held-out data")
    if train.eval_every and train.eval_batches and not len(kept):
        raise Fault(
            f"train.eval_every is {train.eval_every}, but no rows are held out; set it to 0, or raise data.hold"
        )
    rounds = 2 + steps // train.eval_every if train.eval_every else 0
    asis = replace(batches, cleaning=KEEP_ALL)  # what a model is measured on stays what it is
    kept = prepared(kept, tokenizer, asis, columns, rounds * train.eval_batches * places, console(), unit)
    return Data(Prefetch(loader), loader, steps, lambda: Loader(kept, tokenizer, seed=None, epochs=1, **options))


def _counted(loader: Loader) -> int:
    """How many steps the epochs are, and a word about how full their rows will be."""
    lanes = reading(lambda: list(loader.survey()), "counting the batches of an epoch")
    total = sum(lanes, Counts())
    if not total.rows:
        raise Fault(f"not one example could be used: {loader.why(total)}")
    _say(
        f"{total.examples:,} examples of {total.tokens:,} tokens; rows of {loader.seq_len} are "
        f"{100 * total.fill:.1f} % full"
    )
    return max(lane.rows for lane in lanes)


def check(config: Any, mesh: Mesh) -> None:
    """That numbers make sense and a batch can be cut as the config says, before anything is read."""
    for name, least in LEAST.items():
        group, _, field = name.partition(".")
        if (value := getattr(getattr(config, group), field)) < least:
            raise Fault(f"{name} is {value}; it must be at least {least}")
    rows, parts, devices = config.batches.rows, config.train.microbatches, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (parts * devices):
        raise Fault(
            f"batches.rows is {rows}, which {parts} microbatches on {devices} devices (mesh axes data and fsdp) do not "
            f"divide; make it a multiple of {parts * devices}, or change train.microbatches or train.mesh"
        )


def reading(act: Callable[[], Any], what: str) -> Any:
    """Something that may take a while, with a word about it."""
    with status(what, console()):
        return act()


def console() -> Console:
    """Where a run speaks: the terminal of the first process."""
    return Console(quiet=jax.process_index() > 0)


def _say(text: str) -> None:
    console().print(text, highlight=False, markup=False, soft_wrap=True)


def settle(directory: Path, config: Any, begun: bool) -> None:
    """Writes the config into the run directory; refuses to go on with a run under other settings."""
    if begun:
        before = record.read(directory)
        changed = {
            name: values
            for name, values in record.differences(before, config).items()
            if name != "run"
            and not name.startswith(("review.", "train.steps", "train.save_every", "train.log_every", "batches.cache"))
        }
        if changed:
            told = [f"{name} was {old!r} and is now {new!r}" for name, (old, new) in changed.items()]
            raise Fault(
                f"{directory} holds a run with other settings: {'; '.join(told)}. Go on with the same ones, or choose "
                "another directory with --run"
            )
    if jax.process_index() == 0:
        record.write(directory, config)


def place(batch: HostBatch, mesh: Mesh) -> Batch:
    """This process's rows as their part of the global batch on the devices."""
    rows = shard.rows(mesh)
    return {name: jax.make_array_from_process_local_data(rows, np.asarray(x)) for name, x in batch.items()}


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
    data: Data
    assembly: Assembly
    programs: dict[str, Program]
    frozen: Tree

    def weights(self, state: State) -> Tree:
        """The model as it is at a state."""
        return delta.bind(self.frozen["base"], delta.combine(state.trainable, self.frozen["fixed"]))


def train(
    config: Any,
    directory: Path,
    model: Loaded,
    data: Data,
    assembly: Assembly,
    programs: dict[str, Program],
    reviewing: Reviewed | None = None,
) -> State:
    """Runs the loop around a recipe's programs, with checkpoints, metrics and progress, and reviews the result: as a
    language model, unless the recipe knows better."""
    begun_at = time.monotonic()
    if config.batches.seq_len > model.config.max_length:
        raise Fault(
            f"batches.seq_len is {config.batches.seq_len}, and the model knows {model.config.max_length} positions "
            "(max_position_embeddings of its config.json); lower batches.seq_len"
        )
    with Checkpoints(directory / "checkpoints") as checkpoints:
        begun = checkpoints.step()
        settle(directory, config, begun is not None)
        state, fixed = assembly.make(jax.random.fold_in(jax.random.key(config.train.seed), 1), model.weights)
        session = Session(config, directory, model, data, assembly, programs, {"base": model.weights, "fixed": fixed})
        reviewing = reviewing or Reviewing(config.review, config.data, directory, model.config, model.tokenizer)
        # A fresh prompt or prefix is not nothing: what it is added to is measured without it.
        plain = model.weights if config.delta.virtual else session.weights(state)
        reviewing.before(plain)
        if begun is not None:
            saved = checkpoints.restore(assembly.state)
            state = saved.state
            data.source.restore(join(saved.sources))
            _say(f"going on from step {begun} of {directory}")
        if int(state.step) < data.steps:
            with _log(directory, begun or 0) as log, closing(data.source):
                state = _fit(session, state, checkpoints, log)
            checkpoints.wait()  # the review takes a while, and must not be what a failed save is told after
    if jax.process_index() == 0:
        metrics.write_facts(directory, _facts(session, state, time.monotonic() - begun_at))
    _say_what_became_of(counts_of(data.source.save()), config.batches.seq_len)
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


def _say_what_became_of(counts: Counts, seq_len: int) -> None:
    _say(f"Rows of {seq_len} places were {100 * counts.fill:.1f} % full.")
    told = {"truncated to it": counts.truncated, "left out": counts.dropped}
    if any(told.values()):
        said = ", ".join(f"{number:,} {what}" for what, number in told.items() if number)
        _say(f"Of {counts.examples:,} examples read, some are longer than seq_len {seq_len}: {said}.")


def _fit(session: Session, state: State, checkpoints: Checkpoints, log: Callable[[int, Metrics], None]) -> State:
    config, data, assembly = session.config, session.data, session.assembly
    compiled = {}
    for name, program in session.programs.items():
        with status(f"compiling {name}", console()):
            compiled[name] = program.call.lower(*program.arguments).compile()
    key = jax.device_put(jax.random.key(config.train.seed), session.programs["step"].arguments[-1].sharding)
    # All of them now: asking for one at a time would queue behind the running step, and the host would wait for it.
    rates = np.asarray(jax.vmap(optimisers.schedule(config.optim, data.steps))(np.arange(data.steps)))
    best = min((entry.get("eval_loss", math.inf) for entry in metrics.read(session.directory)), default=math.inf)
    peak = peak_flops(jax.devices()[0].device_kind)
    bar = Progress(
        data.steps,
        int(state.step),
        flops_per_token=assembly.flops_per_token,
        peak=peak and peak * assembly.mesh.size,
        console=console(),
    )

    waiting, places = Waiting(), config.batches.rows * config.batches.seq_len

    def report(step: int, values: Metrics) -> None:
        fetched: dict[str, float] = {name: float(np.asarray(value)) for name, value in jax.device_get(values).items()}
        bar.update(step, int(fetched["tokens"]), fetched["loss"], waiting.share)
        if (config.train.log_every and step % config.train.log_every == 0) or step == data.steps:
            measured = {"tokens_per_second": bar.tokens_per_second, "data_wait": waiting.share}
            pace = {name: value for name, value in measured.items() if value is not None}
            log(step, {**fetched, "lr": float(rates[step - 1]), "fill": fetched["tokens"] / places, **pace})

    def save(step: int, state: State) -> None:
        checkpoints.save(step, state, data.source.save())

    def evaluate(step: int, state: State) -> None:
        nonlocal best
        with bar.status("evaluating"):
            found = held_out(session, compiled["evaluate"], state)
        log(step, {f"eval_{name}": value for name, value in found.items()})
        if found["loss"] < best:
            best = found["loss"]
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


def held_out(session: Session, call: Any, state: State) -> dict[str, float]:
    """Loss and accuracy over the first batches of the held-out rows, every token counting the same."""
    loader, sums, predictions = session.data.held_out(), {"loss": 0.0, "accuracy": 0.0}, 0.0
    for _ in range(session.config.train.eval_batches):
        try:
            batch = place(loader.next(), session.assembly.mesh)
        except StopIteration:
            break
        found = jax.device_get(call(state.trainable, session.frozen, batch))
        predictions += float(found["predictions"])
        for name in sums:
            sums[name] += float(found[name]) * float(found["predictions"])
    return {name: total / max(1.0, predictions) for name, total in sums.items()}


def _facts(session: Session, state: State, seconds: float) -> dict[str, str | int | float]:
    counts = counts_of(session.data.source.save())
    return {
        **metrics.environment(),
        "mesh": ", ".join(f"{name} {size}" for name, size in session.assembly.mesh.shape.items()),
        "parameters": session.assembly.parameters,
        "trained parameters": session.assembly.trained_parameters,
        "steps": int(state.step),
        "examples read": counts.examples,
        "tokens": counts.tokens,
        "examples truncated": counts.truncated,
        "examples left out": counts.dropped,
        "row fill": f"{100 * counts.fill:.1f} %",
        "seconds since the last start": round(seconds, 1),
        **session.config.delta.facts(delta.combine(state.trainable, session.frozen["fixed"])),
    }
