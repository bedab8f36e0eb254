# SPDX-License-Identifier: Apache-2.0
"""What a run is fed with: batches, and what there is to measure and to tell beside them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpost import shard
from jaxpost.arrays import Batch, HostBatch, Tree
from jaxpost.data.batches.loader import BatchSource, Counts, Loader, Single, Unit, counts_of, join
from jaxpost.data.batches.prefetch import Prefetch
from jaxpost.data.prepare.cleaning import KEEP_ALL
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.faults import Fault
from jaxpost.recipes.prepared import prepared
from jaxpost.recipes.telling import console, reading, say
from jaxpost.train.state import State

Fact = str | int | float


class Feed(Protocol):
    """A run's batches: read from files, or made by the model itself as it learns.

    The loop takes `steps` of them, and the optimiser makes `updates` of each. `shows` is the number that the progress
    bar tells of a step, `waits` what it says of time without a batch; `better` is what the best checkpoint is best by,
    the lower the better, as `measure` names it.
    """

    @property
    def steps(self) -> int: ...
    @property
    def updates(self) -> int: ...
    @property
    def shows(self) -> str: ...
    @property
    def waits(self) -> str: ...
    @property
    def source(self) -> BatchSource: ...
    @property
    def length(self) -> int:
        """How many positions a row has."""
        ...

    @property
    def places(self) -> int:
        """How many positions a step has."""
        ...

    def begin(self, frozen: Tree, programs: Mapping[str, Any], mesh: Mesh) -> None:
        """Before the first batch: what a run never changes, and its compiled programs."""
        ...

    def resume(self, saved: list[dict[str, Any]]) -> None:
        """To where all processes' sources were."""
        ...

    def measure(self, state: State) -> dict[str, float]:
        """How good the state is by what is held out."""
        ...

    def better(self, found: Mapping[str, float]) -> float:
        """Of what was measured, the number that the best checkpoint has the lowest of."""
        ...

    def facts(self) -> dict[str, Fact]:
        """What became of the data, for the run's record."""
        ...

    def told(self) -> list[str]:
        """The same, in sentences, as far as a user should know."""
        ...

    def close(self) -> None: ...


@dataclass
class Data:
    """Batches of rows, and a fresh pass over the held-out ones. Every measure is a mean over all predictions, that of
    the program `evaluate` over one batch."""

    source: Prefetch
    loader: Loader
    steps: int
    held_out: Callable[[], Loader]
    eval_batches: int = 0
    updates: int = 1
    shows: str = "loss"
    waits: str = "waiting for data"

    @property
    def length(self) -> int:
        return self.loader.seq_len

    @property
    def places(self) -> int:
        return self.loader.batch * self.loader.seq_len

    def begin(self, frozen: Tree, programs: Mapping[str, Any], mesh: Mesh) -> None:
        self._frozen, self._evaluate, self._mesh = frozen, programs["evaluate"], mesh

    def resume(self, saved: list[dict[str, Any]]) -> None:
        self.source.restore(join(saved))

    def measure(self, state: State) -> dict[str, float]:
        sums: dict[str, float] = {}
        predictions = 0.0
        for batch in _some(self.held_out(), self.eval_batches):
            found = jax.device_get(self._evaluate(state.trainable, self._frozen, place(batch, self._mesh)))
            count = float(found.pop("predictions"))
            found.pop("tokens", None)
            predictions += count
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value) * count
        return {name: total / max(1.0, predictions) for name, total in sums.items()}

    def better(self, found: Mapping[str, float]) -> float:
        return found["loss"]

    def facts(self) -> dict[str, Fact]:
        counts = counts_of(self.source.save())
        return {
            "examples read": counts.examples,
            "tokens": counts.tokens,
            "examples truncated": counts.truncated,
            "examples left out": counts.dropped,
            "row fill": f"{100 * counts.fill:.1f} %",
            **({"examples of no use": counts.useless} if counts.useless else {}),
            **({"labellers agree": f"{100 * counts.agreeing / counts.asked:.1f} %"} if counts.asked else {}),
        }

    def told(self) -> list[str]:
        counts, seq_len = counts_of(self.source.save()), self.loader.seq_len
        lines = [f"Rows of {seq_len} places were {100 * counts.fill:.1f} % full."]
        told = {"truncated to it": counts.truncated, "left out": counts.overlong + counts.untrained}
        if any(told.values()):
            said = ", ".join(f"{number:,} {what}" for what, number in told.items() if number)
            lines.append(f"Of {counts.examples:,} examples read, some are longer than seq_len {seq_len}: {said}.")
        if counts.uses:
            lines.append(f"Of {counts.examples:,} examples read: {counts.uses}.")
        return lines

    def close(self) -> None:
        self.source.close()


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

    def held_out() -> Loader:
        return Loader(kept, tokenizer, seed=None, epochs=1, **options)

    return Data(Prefetch(loader), loader, steps, held_out, train.eval_batches)


def place(batch: HostBatch, mesh: Mesh) -> Batch:
    """This process's rows as their part of the global batch on the devices."""
    rows = shard.rows(mesh)
    return {name: jax.make_array_from_process_local_data(rows, np.asarray(x)) for name, x in batch.items()}


def _some(loader: Loader, count: int) -> Iterator[HostBatch]:
    for _ in range(count):
        try:
            yield loader.next()
        except StopIteration:
            return


def _counted(loader: Loader) -> int:
    """How many steps the epochs are, and a word about how full their rows will be."""
    lanes = reading(lambda: list(loader.survey()), "counting the batches of an epoch")
    total = sum(lanes, Counts())
    if not total.rows:
        raise Fault(f"not one example could be used: {loader.why(total)}")
    say(
        f"{total.examples:,} examples of {total.tokens:,} tokens; rows of {loader.seq_len} are "
        f"{100 * total.fill:.1f} % full"
    )
    return max(lane.rows for lane in lanes)
