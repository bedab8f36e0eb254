# SPDX-License-Identifier: Apache-2.0
"""Tasks whose rows are made on demand: any number of them, each a function of (task, seed, split, index)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from jaxpost.data.nano.dice import Dice, fingerprint
from jaxpost.data.tasks import Metric, Row, Split, Task, Template
from jaxpost.faults import Fault

MakeRow = Callable[[Dice], Row]

TEST_SHARE = 4  # one input in so many belongs to the test split
TRIES = 2_000


def side(name: str, row: Row, inputs: Sequence[str]) -> Split:
    """The split a row belongs to, decided by its inputs alone, in whatever order: 3 + 5 goes where 5 + 3 goes.

    This is what keeps train and test apart: no input can be on both sides, for any seed.
    """
    key = "|".join(sorted(str(row[field]) for field in inputs))
    return "train" if fingerprint(f"{name}|{key}") % TEST_SHARE else "test"


@dataclass(frozen=True)
class Generated(Sequence[Row]):
    """Rows of one split; row i is drawn from its own dice until its inputs fall on the wanted side."""

    name: str
    make: MakeRow
    inputs: tuple[str, ...]
    seed: int
    split: Split
    size: int

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise Fault(f"task {self.name} has no split {self.split!r}; its splits are train and test")

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        dice = Dice(fingerprint(f"{self.name}|{self.seed}|{self.split}|{index % self.size}"))
        for _ in range(TRIES):
            row = self.make(dice)
            if side(self.name, row, self.inputs) == self.split:
                return row
        raise Fault(
            f"task {self.name}: {TRIES} rows were drawn and none of their inputs ({', '.join(self.inputs)}) belongs "
            f"to the {self.split} split; give the task more different inputs"
        )


@dataclass(frozen=True)
class Source:
    """`source(split)` of a generated task. `dataclasses.replace(source, seed=1)` gives other rows of the same task."""

    name: str
    make: MakeRow
    inputs: tuple[str, ...]
    seed: int = 0
    train: int = 30_000
    test: int = 1_000

    def __call__(self, split: Split) -> Generated:
        size = self.train if split == "train" else self.test
        return Generated(self.name, self.make, self.inputs, self.seed, split, size)


def task(
    cluster: str,
    make: MakeRow,
    inputs: str,
    prompts: Sequence[str],
    turned: Sequence[tuple[str, str]] = (),
    metric: Metric = "exact",
    train: int = 30_000,
) -> Task:
    """A generated task, named after the function that makes its rows.

    `inputs` names the fields (separated by blanks) that decide the split. `prompts` all have the answer as their
    target; `turned` are pairs of prompt and target. Tasks judged by "rank" have a field `options` in their rows.
    """
    name = make.__name__
    straight = tuple(Template(prompt, "{answer}") for prompt in prompts)
    around = tuple(Template(prompt, target, turned=True) for prompt, target in turned)
    return Task(
        name=name,
        cluster=cluster,
        source=Source(name, make, tuple(inputs.split()), train=train),
        templates=straight + around,
        metric=metric,
        options="options" if metric == "rank" else None,
    )
