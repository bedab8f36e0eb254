# SPDX-License-Identifier: Apache-2.0
"""Many tasks as one sequence of examples: how often each task is seen, by which rows, in which words."""

import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np

from jaxpost.data.batches.order import Order
from jaxpost.data.tasks import Example, Row, Split, Task
from jaxpost.faults import Fault, nearest


@dataclass(frozen=True)
class Proportional:
    """A task's weight is its number of rows, but at most `cap`, if there is one (examples-proportional mixing, Wei et
    al. 2021, https://arxiv.org/abs/2109.01652, with a cap of 3,000)."""

    cap: int | None = 3000

    def weights(self, sizes: Mapping[str, int]) -> dict[str, float]:
        if self.cap is not None and self.cap < 1:
            raise Fault(f"a mixture's cap must be at least 1, not {self.cap}")
        return {name: float(min(size, self.cap or size)) for name, size in sizes.items()}


@dataclass(frozen=True)
class Temperature:
    """A task's weight is min(rows, cap) ** (1 / t): proportional at t = 1, equal as t grows (Raffel et al. 2020,
    https://arxiv.org/abs/1910.10683)."""

    t: float
    cap: int = 2**21

    def weights(self, sizes: Mapping[str, int]) -> dict[str, float]:
        if not self.t > 0:
            raise Fault(f"a mixture's temperature must be above 0, not {self.t}")
        return {name: min(size, self.cap) ** (1 / self.t) for name, size in sizes.items()}


@dataclass(frozen=True)
class Weights:
    """The weights as given, one for every task; they need not sum to 1."""

    given: Mapping[str, float]

    def weights(self, sizes: Mapping[str, int]) -> dict[str, float]:
        for name in self.given:
            if name not in sizes:
                raise Fault(f"a weight is given for {name!r}, which is not in the mixture; {nearest(name, sizes)}")
        if missing := [name for name in sizes if name not in self.given]:
            raise Fault(f"no weight is given for: {', '.join(missing)}; 0 leaves a task out")
        if min(self.given.values()) < 0 or sum(self.given.values()) <= 0:
            raise Fault("a mixture's weights must not be negative, and one must be above 0")
        return dict(self.given)


Weighting = Proportional | Temperature | Weights


def quotas(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, each less than 1 from its exact share (largest remainder)."""
    shares = np.asarray(weights, np.float64) / np.sum(weights) * total
    whole = np.floor(shares).astype(int)
    order = np.argsort(whole - shares, kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole.tolist()


class Pick(NamedTuple):
    """Which row of which task, in the words of which template."""

    task: int
    row: int
    template: int


@dataclass(frozen=True)
class Mixture(Sequence[Example]):
    """Examples of several tasks in exact proportions; the same index gives the same example in every process.

    An epoch holds `size` examples (by default as many as the tasks have rows, each counted up to the weighting's cap),
    task after task: whoever reads it shuffles. The next epoch goes on in each task's rows where the one before
    stopped, so a capped task shows other rows every time, and a row that comes again is worded anew.
    `templates`: "all", "straight" (those not turned around), or the numbers of the ones to use.
    """

    tasks: tuple[Task, ...]
    weighting: Weighting = Proportional()
    templates: Literal["all", "straight"] | tuple[int, ...] = "all"
    split: Split = "train"
    seed: int = 0
    size: int | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise Fault("a mixture needs a task, one at least")
        _by_name(self.tasks)
        if self.size is not None and self.size < 1:
            raise Fault(f"a mixture's size must be at least 1, not {self.size}")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        return self.at(0, range(len(self))[index])

    def at(self, epoch: int, index: int) -> Example:
        """The example at an index of an epoch."""
        pick = self.pick(epoch, index)
        return self.tasks[pick.task].render(self._rows[pick.task][pick.row], pick.template)

    def pick(self, epoch: int, index: int) -> Pick:
        task = bisect_right(self._ends, index)
        start = self._ends[task - 1] if task else 0
        quota = self._ends[task] - start
        visit, row = self._orders[task](epoch * quota + index - start)
        words = self._templates[task]
        first = zlib.crc32(f"{self.seed} {self.tasks[task].name} {row}".encode())
        return Pick(task, row, words[(first + visit) % len(words)])

    @cached_property
    def quotas(self) -> dict[str, int]:
        """How many examples of each task an epoch holds."""
        sizes = {task.name: len(rows) for task, rows in zip(self.tasks, self._rows, strict=True)}
        weights = self.weighting.weights(sizes)
        cap = getattr(self.weighting, "cap", None)
        size = self.size or sum(min(n, cap or n) for name, n in sizes.items() if weights[name] > 0)
        return dict(zip(sizes, quotas([weights[name] for name in sizes], size), strict=True))

    @cached_property
    def _rows(self) -> list[Sequence[Row]]:
        rows = [task.source(self.split) for task in self.tasks]
        for task, found in zip(self.tasks, rows, strict=True):
            if not len(found):
                raise Fault(f"task {task.name} has no rows in its split {self.split!r}")
        return rows

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.quotas.values()))

    @cached_property
    def _orders(self) -> list[Order]:
        return [
            Order(len(rows), (self.seed, zlib.crc32(task.name.encode())))
            for task, rows in zip(self.tasks, self._rows, strict=True)
        ]

    @cached_property
    def _templates(self) -> list[tuple[int, ...]]:
        return [_numbers(task, self.templates) for task in self.tasks]


class Division(NamedTuple):
    """Tasks to train on, tasks never seen although their cluster is, and tasks of clusters never seen."""

    train: tuple[Task, ...]
    unseen_tasks: tuple[Task, ...]
    unseen_clusters: tuple[Task, ...]


def split_tasks(
    tasks: Sequence[Task], held_out_tasks: Sequence[str] = (), held_out_clusters: Sequence[str] = ()
) -> Division:
    """Divides tasks into those trained and those held out, by name and by whole cluster."""
    names, clusters = _by_name(tasks), {task.cluster for task in tasks}
    for kind, asked, known in (("task", held_out_tasks, names), ("cluster", held_out_clusters, clusters)):
        for name in asked:
            if name not in known:
                raise Fault(f"no {kind} {name!r} to hold out; {nearest(name, known)}")
    away = tuple(task for task in tasks if task.cluster in held_out_clusters)
    apart = tuple(task for task in tasks if task.name in held_out_tasks and task not in away)
    train = tuple(task for task in tasks if task not in away and task not in apart)
    if not train:
        raise Fault(f"all {len(tasks)} tasks are held out: none is left to train on")
    return Division(train, apart, away)


def _numbers(task: Task, templates: Literal["all", "straight"] | tuple[int, ...]) -> tuple[int, ...]:
    count = len(task.templates)
    if templates == "all":
        return tuple(range(count))
    if templates == "straight":
        numbers = tuple(i for i, template in enumerate(task.templates) if not template.turned)
    else:
        numbers = tuple(templates)
    if not numbers or not all(isinstance(i, int) and 0 <= i < count for i in numbers):
        raise Fault(
            f"task {task.name} has no templates {templates!r}; it has {count}, counted from 0 "
            f"({sum(template.turned for template in task.templates)} of them turned around)"
        )
    return numbers


def _by_name(tasks: Sequence[Task]) -> dict[str, Task]:
    named = {task.name: task for task in tasks}
    if len(named) < len(tasks):
        names = [task.name for task in tasks]
        raise Fault(f"two tasks have one name: {next(name for name in names if names.count(name) > 1)!r}")
    return named
