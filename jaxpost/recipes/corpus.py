# SPDX-License-Identifier: Apache-2.0
"""What a run learns from, as config: tasks worded as instructions, files of rows, or generated text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from jaxpost.data import nano, sources
from jaxpost.data.mixtures import Division, Mixture, Proportional, Temperature, Weights, split_tasks
from jaxpost.data.tasks import Task
from jaxpost.data.tokens import TokenRows
from jaxpost.faults import Fault, nearest


class Corpus(Protocol):
    """Rows to train on, and rows kept from training to measure the loss on."""

    def training(self, seed: int) -> Sequence[Any]: ...

    def held_out(self, seed: int) -> Sequence[Any]: ...

    @property
    def columns(self) -> Mapping[str, str] | None: ...


@dataclass(frozen=True)
class Tasks:
    """A mixture of the built-in tasks, FLAN's way. What is held out, single tasks or whole clusters, is never trained
    on and measures what transfers. `only` keeps these clusters (empty: all)."""

    only: tuple[str, ...] = ()
    held_out_tasks: tuple[str, ...] = ()
    held_out_clusters: tuple[str, ...] = ()
    weighting: Proportional | Temperature | Weights = Proportional()
    templates: Literal["all", "straight"] = "all"

    @property
    def columns(self) -> None:
        return None

    def all(self) -> tuple[Task, ...]:
        """The tasks of the clusters asked for, and of those held out."""
        clusters = {task.cluster for task in nano.TASKS.values()}
        for name in self.only:
            if name not in clusters:
                raise Fault(f"data.only: no cluster {name!r}; {nearest(name, clusters)}")
        wanted = {*self.only, *self.held_out_clusters} if self.only else clusters
        return tuple(task for task in nano.TASKS.values() if task.cluster in wanted)

    def everything(self) -> "Tasks":
        """The same with all other clusters too, as what they are to this run: never seen."""
        others = {task.cluster for task in nano.TASKS.values()} - {task.cluster for task in self.all()}
        return replace(self, only=(), held_out_clusters=(*self.held_out_clusters, *sorted(others)))

    def division(self) -> Division:
        return split_tasks(self.all(), self.held_out_tasks, self.held_out_clusters)

    def training(self, seed: int) -> Mixture:
        return Mixture(self.division().train, self.weighting, self.templates, "train", seed)

    def held_out(self, seed: int) -> Mixture:
        return Mixture(self.division().train, self.weighting, "straight", "test", seed, size=256)


@dataclass(frozen=True)
class Files:
    """JSONL or CSV. The last `hold` rows (or those of the `test` file) are kept from training. `columns` maps the
    file's fields to ours, e.g. question to prompt and answer to completion."""

    train: str
    test: str = ""
    hold: int = 256
    columns: Mapping[str, str] | None = None

    def _read(self, path: str) -> Sequence[Any]:
        readers = {".jsonl": sources.jsonl, ".csv": sources.csv}
        reader = readers.get(Path(path).suffix)
        if reader is None:
            raise Fault(f"{path}: rows are read from .jsonl and .csv files; convert it to one of them")
        return reader(path)

    def training(self, seed: int) -> Sequence[Any]:
        rows = self._read(self.train)
        return rows if self.test else _Slice(rows, 0, _kept(rows, self.hold, self.train))

    def held_out(self, seed: int) -> Sequence[Any]:
        if self.test:
            return self._read(self.test)
        rows = self._read(self.train)
        return _Slice(rows, _kept(rows, self.hold, self.train), len(rows))


@dataclass(frozen=True)
class Tokens:
    """A `.npy` matrix of token ids, for text that is read many times; the last `hold` rows are kept from training."""

    path: str
    hold: int = 256

    @property
    def columns(self) -> None:
        return None

    def training(self, seed: int) -> Sequence[Any]:
        rows = TokenRows(self.path)
        return _Slice(rows, 0, _kept(rows, self.hold, self.path))

    def held_out(self, seed: int) -> Sequence[Any]:
        rows = TokenRows(self.path)
        return _Slice(rows, _kept(rows, self.hold, self.path), len(rows))


def _kept(rows: Sequence[Any], hold: int, path: str) -> int:
    """Where the rows begin that are kept from training."""
    if not 0 <= hold < len(rows):
        raise Fault(
            f"data.hold is {hold}, and {path} has {len(rows)} rows: it keeps that many of them from training, at least "
            "0 and not all"
        )
    return len(rows) - hold


@dataclass(frozen=True)
class _Slice(Sequence[Any]):
    rows: Sequence[Any]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: Any) -> Any:
        return self.rows[self.start + range(len(self))[index]]
