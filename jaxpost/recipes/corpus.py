# SPDX-License-Identifier: Apache-2.0
"""What a run learns from, as config: tasks worded as instructions, files of rows, or generated text."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

from jaxpost.data import nano, sources
from jaxpost.data.blend import Blend
from jaxpost.data.mixtures import Division, Mixture, Proportional, Temperature, Weights, split_tasks
from jaxpost.data.sources import remote, tfds
from jaxpost.data.sources.record import files_of
from jaxpost.data.tasks import Task
from jaxpost.data.tokens import TokenRows
from jaxpost.data.uniform import Renamed, Uniform
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
    """Rows of files: JSONL, JSON, CSV, TSV, Parquet, Arrow or text (a document a line), `.gz` and `.zst` too; one, a
    pattern, a directory of them or of a saved Hugging Face data set, here or at gs://, s3:// or https://; or several
    such, read as one.

    `columns` maps the file's fields to ours, e.g. question to prompt and answer to completion. `split` says which one
    is trained on where a directory has several (train, if it is there) and may cut it: `train[:90%]`. The last `hold`
    rows are kept from training, or those of `test`, of which `test_split` says the split (validation, else test).
    """

    train: str | tuple[str, ...]
    test: str | tuple[str, ...] = ""
    hold: int = 256
    columns: Mapping[str, str] | None = None
    split: str = ""
    test_split: str = ""

    def training(self, seed: int) -> Sequence[Any]:
        rows = Uniform(sources.read(self.train, self.split), self.columns)
        return rows if self.test else _Slice(rows, 0, _kept(rows, self.hold, rows.name))

    def held_out(self, seed: int) -> Sequence[Any]:
        if self.test:
            rows = Uniform(sources.read(self.test, self.test_split, ("validation", "test")), self.columns)
            self._check_apart(rows)
            return rows
        rows = Uniform(sources.read(self.train, self.split), self.columns)
        return _Slice(rows, _kept(rows, self.hold, rows.name), len(rows))

    def _check_apart(self, kept: Uniform) -> None:
        """Raises if what measures the run is what it is trained on."""
        parts = "[" in self.split + self.test_split  # whose rows may lie apart in the same files
        if self.test == self.train and not parts and set(kept.files) & set(sources.read(self.train, self.split).files):
            raise Fault(
                f"data.test reads files that data.train reads, {kept.files[0]} among them; name another split in "
                "data.test_split, or leave data.test empty, and the last rows are held out"
            )


@dataclass(frozen=True)
class Tfds:
    """A data set that TensorFlow Datasets prepared (as array_record or tfrecord) below `data_dir`, read without
    TensorFlow: `name[/config][:version]`, the newest version where none is given.

    `split` is TFDS's (`train[:90%]`, `train+test`). The last `hold` rows are kept from training, or the split `test`.
    """

    name: str
    data_dir: str
    split: str = "train"
    test: str = ""
    hold: int = 256
    columns: Mapping[str, str] | None = None

    def _read(self, split: str) -> Uniform:
        data_dir = remote.downloaded(self.data_dir) if remote.is_remote(self.data_dir) else self.data_dir
        return Uniform(sources.TfdsRows(tfds.find(data_dir, self.name), split), self.columns)

    def training(self, seed: int) -> Sequence[Any]:
        rows = self._read(self.split)
        return rows if self.test else _Slice(rows, 0, _kept(rows, self.hold, rows.name))

    def held_out(self, seed: int) -> Sequence[Any]:
        rows = self._read(self.test or self.split)
        return rows if self.test else _Slice(rows, _kept(rows, self.hold, rows.name), len(rows))


@dataclass(frozen=True)
class Mixed:
    """Several sources in exact proportions, each under a name that `Weights` and faults call it by: all rows once an
    epoch (`Proportional`, a large source cut to its cap), equalised by `Temperature`, or as `Weights` say.

    `size` is how many rows an epoch holds (0: as many as the sources have). Each source keeps its own held-out rows.
    """

    sources: Mapping[str, Files | Tfds]
    weighting: Proportional | Temperature | Weights = Proportional(cap=2**62)
    size: int = 0

    @property
    def columns(self) -> None:
        return None  # rows come under our names already

    def _each(self, read: Callable[[Files | Tfds], Sequence[Any]]) -> dict[str, Sequence[Any]]:
        found = {name: (read(source), source.columns) for name, source in self.sources.items()}
        return {name: Renamed(rows, columns) if columns else rows for name, (rows, columns) in found.items()}

    def training(self, seed: int) -> Blend:
        return Blend(self._each(lambda source: source.training(seed)), self.weighting, seed, self.size or None)

    def held_out(self, seed: int) -> Sequence[Any]:
        return _Chain(tuple(self._each(lambda source: source.held_out(seed)).values()))


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

    @property
    def name(self) -> str:
        return getattr(self.rows, "name", "the data set")

    @property
    def files(self) -> tuple[Path, ...]:
        return files_of(self.rows)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: Any) -> Any:
        return self.rows[self.start + range(len(self))[index]]


@dataclass(frozen=True)
class _Chain(Sequence[Any]):
    parts: tuple[Sequence[Any], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for part in self.parts for file in files_of(part))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self.parts), initial=0))[1:]
