# SPDX-License-Identifier: Apache-2.0
"""What a classifier learns from, as config: rows that have labels, and the classes that these name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpost.data import nano
from jaxpost.data.batches.marks import Marked
from jaxpost.data.rows.labels import Classes, Kind
from jaxpost.data.tasks import Row, Task
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.delta import Method
from jaxpost.faults import Fault, nearest
from jaxpost.models.decoder import Decoder, specs
from jaxpost.recipes.corpus import Corpus


@dataclass(frozen=True)
class BuiltIn:
    """Rows of a built-in task, asked by its first template: the answer as the label, or as a span of its text."""

    task: str

    @property
    def columns(self) -> None:
        return None

    def training(self, seed: int) -> "Asked":
        return Asked(self._task, self._task.source("train"))

    def held_out(self, seed: int) -> "Asked":
        return Asked(self._task, self._task.source("test"))

    @property
    def _task(self) -> Task:
        if self.task not in nano.TASKS:
            raise Fault(f"data.task: no built-in task is called {self.task!r}; {nearest(self.task, nano.TASKS)}")
        return nano.TASKS[self.task]


@dataclass(frozen=True)
class Asked(Sequence[Row]):
    """Rows of a task under the names that labels are read by."""

    task: Task
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Row:
        row = self.rows[index]
        said = {"text": self.task.render(row, 0).prompt.strip(), "label": row["answer"]}
        if "text" in row:
            question = self.task.render({**row, "text": ""}, 0).prompt.strip()
            said |= {"context": row["text"], "question": question, "answer": row["answer"]}
        return said


@dataclass(frozen=True)
class Labels:
    """Rows of a corpus as tokens with labels."""

    corpus: Corpus
    tokenizer: Tokenizer
    kind: Kind
    classes: Classes

    @property
    def columns(self) -> Mapping[str, str] | None:
        return self.corpus.columns

    def training(self, seed: int) -> Marked:
        return Marked(self.corpus.training(seed), self.tokenizer, self.kind, self.classes, self.columns)

    def held_out(self, seed: int) -> Marked:
        return Marked(self.corpus.held_out(seed), self.tokenizer, self.kind, self.classes, self.columns)


def classes_of(kind: Kind, labels: tuple[str, ...], method: Method, model: Decoder) -> Classes:
    """The classes that the head has a score for. Raises `Fault` for a delta without a head."""
    head = method(specs(model)).get("heads/classes")
    if head is None:
        raise Fault("delta: classes need a head; choose Both(..., Head(classes)), such as Both(Lora(), Head(2))")
    if kind != "span" and head.value.shape[-1] < 2:
        raise Fault("delta: a head of one class is a score; to tell something apart choose Head(2) or more")
    if kind != "span" and len(labels) == 1:
        raise Fault(f"labels names {labels[0]!r} alone; to tell something apart there must be at least 2 classes")
    count, wanted = head.value.shape[-1], 2 if kind == "span" else len(labels) or head.value.shape[-1]
    if count != wanted:
        what = "a span has 2 ends" if kind == "span" else f"labels names {wanted} classes"
        raise Fault(f"delta: the head has {count} classes, and {what}; choose Head({wanted})")
    return Classes(count, labels)
