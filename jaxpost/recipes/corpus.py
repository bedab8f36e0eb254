# SPDX-License-Identifier: Apache-2.0
"""What a run learns from, as config: tasks worded as instructions, a built-in world, files of rows, or tokens."""

import glob
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from jaxpost.data import nano, sources
from jaxpost.data.blend import Blend
from jaxpost.data.mixtures import Division, Mixture, Proportional, Temperature, Weights, split_tasks
from jaxpost.data.nano import worlds
from jaxpost.data.rows.views import Renamed, Some, Uniform
from jaxpost.data.sources import remote, tfds
from jaxpost.data.sources.record import Rows, Span, common, files_of
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
class World:
    """Rows of a built-in world (`answers`, `reviews`, `manners`) of one kind: `sft`, `prompts`, `preference`, ...

    An epoch has `size` rows (0: the kind's own number); the test split is held out. `only` keeps these tasks or
    clusters of `answers`.
    """

    name: str
    kind: str
    size: int = 0
    only: tuple[str, ...] = ()

    @property
    def columns(self) -> None:
        return None

    def training(self, seed: int) -> Sequence[Any]:
        return worlds.rows(self.name, self.kind, "train", seed=seed, size=self.size, only=self.only)

    def held_out(self, seed: int) -> Sequence[Any]:
        return worlds.rows(self.name, self.kind, "test", seed=seed, only=self.only)


HOLD = 256  # rows kept from training where nothing is said, if they are no more than a tenth

# The rows that a config's run trains on, while that run holds them, and what it is measured on beside them: files are
# opened and looked through once, and what is held out fits what is trained on even if they change meanwhile.
_TRAINED: WeakValueDictionary[Hashable, Rows] = WeakValueDictionary()
_BESIDE: WeakKeyDictionary[Rows, Rows] = WeakKeyDictionary()


class _Stored(ABC):
    """Rows that lie on disk: those of `test` are held out, or else the last `hold` (not said: 256, or a tenth)."""

    test: Any
    hold: int | None
    columns: Mapping[str, str] | None

    @abstractmethod
    def _key(self) -> Hashable:
        """What decides which rows are read."""

    @abstractmethod
    def _train_rows(self) -> Rows: ...

    @abstractmethod
    def _test_rows(self) -> Rows: ...

    @abstractmethod
    def _meet(self) -> bool:
        """Whether both may read the same rows, as far as their names say."""

    def training(self, seed: int) -> Sequence[Any]:
        rows = self._train_rows()
        if self.test:
            _BESIDE[rows] = _apart(rows, self._test_rows())
        _TRAINED[self._key()] = rows
        found = Uniform(rows, self.columns)
        return found if self.test else Some(found, range(_kept(found, self.hold, found.name)))

    def held_out(self, seed: int) -> Sequence[Any]:
        trained = _TRAINED.get(self._key())
        if not self.test:
            rows = Uniform(self._train_rows() if trained is None else trained, self.columns)
            return Some(rows, range(_kept(rows, self.hold, rows.name), len(rows)))
        if trained is not None:
            return Uniform(_BESIDE[trained], self.columns)
        # What is trained on need not be at hand where a model is measured, unless it may be the same.
        rows = self._test_rows()
        return Uniform(_apart(self._train_rows(), rows) if self._meet() else rows, self.columns)

    def spans(self) -> tuple[list[Span], list[Span]]:
        """Where the rows lie that are trained on, and those that are held out, while somebody holds the first."""
        rows = _TRAINED[self._key()]
        if self.test:
            return list(rows.spans(0, len(rows))), list(_BESIDE[rows].spans(0, len(_BESIDE[rows])))
        start = _kept(rows, self.hold, rows.name)
        return list(rows.spans(0, start)), list(rows.spans(start, len(rows)))


@dataclass(frozen=True)
class Files(_Stored):
    """Rows of files: JSONL, JSON, CSV, TSV, Parquet, Arrow or text (a document a line), `.gz` and `.zst` too; one, a
    pattern, a directory of them or of a saved Hugging Face data set, here or at gs://, s3:// or https://; or several
    such, read as one.

    `columns` maps the file's fields to ours, e.g. question to prompt and answer to completion. `split` says which one
    is trained on where a directory has several (train, if it is there) and may cut it: `train[:90%]`. The last `hold`
    rows are kept from training, or those of `test`, of which `test_split` says the split (validation, else test).
    """

    train: str | tuple[str, ...]
    test: str | tuple[str, ...] = ""
    hold: int | None = None
    columns: Mapping[str, str] | None = None
    split: str = ""
    test_split: str = ""

    def _key(self) -> Hashable:
        return repr((self.train, self.split, self.test, self.test_split))  # paths may come as a list

    def _train_rows(self) -> Rows:
        return sources.read(self.train, self.split)

    def _test_rows(self) -> Rows:
        return sources.read(self.test, self.test_split, ("validation", "test"))

    def _meet(self) -> bool:
        train, test = _roots(self.train), _roots(self.test)
        return any(one.is_relative_to(other) or other.is_relative_to(one) for one in train for other in test)


@dataclass(frozen=True)
class Tfds(_Stored):
    """A data set that TensorFlow Datasets prepared (as array_record or tfrecord) below `data_dir`, read without
    TensorFlow: `name[/config][:version]`, the newest version where none is given.

    `split` is TFDS's (`train[:90%]`, `train+test`). The last `hold` rows are kept from training, or the split `test`.
    """

    name: str
    data_dir: str
    split: str = "train"
    test: str = ""
    hold: int | None = None
    columns: Mapping[str, str] | None = None

    def _key(self) -> Hashable:
        return self.data_dir, self.name, self.split, self.test

    def _train_rows(self) -> Rows:
        return self._read(self.split)

    def _test_rows(self) -> Rows:
        return self._read(self.test)

    def _read(self, split: str) -> Rows:
        data_dir = remote.downloaded(self.data_dir) if remote.is_remote(self.data_dir) else self.data_dir
        return sources.TfdsRows(tfds.find(data_dir, self.name), split)

    def _meet(self) -> bool:
        train, test = ({part.partition("[")[0] for part in split.split("+")} for split in (self.split, self.test))
        return bool(train & test)


@dataclass(frozen=True)
class Mixed:
    """Several sources in exact proportions, each under a name that `Weights` and faults call it by: all rows once an
    epoch (`Proportional`, a large source cut to its cap), equalised by `Temperature`, or as `Weights` say.

    `size` is how many rows an epoch holds (0: as many as the sources have). Each source keeps its own held-out rows;
    they come by turns, so that the first of them already measure every source.
    """

    sources: Mapping[str, Files | Tfds]
    weighting: Proportional | Temperature | Weights = Proportional(cap=None)
    size: int = 0

    @property
    def columns(self) -> None:
        return None  # rows come under our names already

    def _each(self, read: Callable[[Files | Tfds], Sequence[Any]]) -> dict[str, Sequence[Any]]:
        found = {name: (read(source), source.columns) for name, source in self.sources.items()}
        return {name: Renamed(rows, columns) if columns else rows for name, (rows, columns) in found.items()}

    def training(self, seed: int) -> Blend:
        rows = self._each(lambda source: source.training(seed))
        spans = {name: source.spans() for name, source in self.sources.items()}
        for one, other in permutations(spans, 2):
            if file := common(spans[one][0], spans[other][1]):
                raise Fault(
                    f"data.sources: {one!r} trains on rows of {file} that {other!r} holds out; hold out the same rows "
                    "in both, or name splits that are apart"
                )
        return Blend(rows, self.weighting, seed, self.size or None)

    def held_out(self, seed: int) -> Sequence[Any]:
        return _Dealt(tuple(self._each(lambda source: source.held_out(seed)).values()))


@dataclass(frozen=True)
class Tokens:
    """A `.npy` matrix of token ids, for text that is read many times; the last `hold` rows are kept from training."""

    path: str
    hold: int | None = None

    @property
    def columns(self) -> None:
        return None

    def training(self, seed: int) -> Sequence[Any]:
        rows = TokenRows(self.path)
        return Some(rows, range(_kept(rows, self.hold, self.path)))

    def held_out(self, seed: int) -> Sequence[Any]:
        rows = TokenRows(self.path)
        return Some(rows, range(_kept(rows, self.hold, self.path), len(rows)))


def _apart(train: Rows, test: Rows) -> Rows:
    """The rows to measure on, if none of them is trained on."""
    if name := common(train.spans(0, len(train)), test.spans(0, len(test))):
        raise Fault(
            f"data.test reads rows that data.train reads, of {name} among others; name other files or another split "
            "for it, or leave it empty, and the last rows are held out"
        )
    return test


def _roots(paths: str | Sequence[str]) -> list[Path]:
    """The files or directories that paths name, without patterns in them."""
    each = [paths] if isinstance(paths, str) else paths
    fixed = [re.split(r"[^/]*[*?\[]", path, maxsplit=1)[0] if glob.has_magic(path) else path for path in each]
    return [Path(path).expanduser().resolve() for path in fixed]


def _kept(rows: Sequence[Any], hold: int | None, path: str) -> int:
    """Where the rows begin that are kept from training: 256 of them, or a tenth of fewer than 2,560, if not said."""
    hold = min(HOLD, len(rows) // 10) if hold is None else hold
    if not 0 <= hold < len(rows):
        raise Fault(
            f"data.hold is {hold}, and {path} has {len(rows)} rows: it keeps that many of them from training, at least "
            "0 and not all"
        )
    return len(rows) - hold


@dataclass(frozen=True)
class _Dealt(Sequence[Any]):
    """All rows of several sources, each source's spread evenly over the whole."""

    parts: tuple[Sequence[Any], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for part in self.parts for file in files_of(part))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        part, row = self._places[index]
        return self.parts[part][int(row)]

    @cached_property
    def _places(self) -> np.ndarray:
        """Of which part which row comes at each place."""
        sizes = [len(part) for part in self.parts]
        rows = np.concatenate([np.arange(size) for size in sizes])
        parts = np.repeat(np.arange(len(sizes)), sizes)
        order = np.argsort((rows + 0.5) / np.repeat(sizes, sizes), kind="stable")
        return np.stack([parts, rows], axis=1)[order]
