# SPDX-License-Identifier: Apache-2.0
"""Tasks written as instructions: rows of fields, and templates that turn a row into a prompt and its target."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxpost.faults import Fault, nearest

Row = Mapping[str, Any]
Split = Literal["train", "test"]
Metric = Literal["rank", "exact", "rouge"]


@dataclass(frozen=True)
class Example:
    """One prompt with its target, ready for a tokenizer.

    `options` are the admissible answers when the target is one of a closed set (rank classification compares their
    likelihoods); `None` for free text. `metric` says how an answer is judged.
    """

    prompt: str
    target: str
    options: tuple[str, ...] | None = None
    metric: Metric = "exact"
    task: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Template:
    """A prompt pattern and a target pattern over a row's fields, e.g. `Template("{text}\\nIs that good?", "{answer}")`.

    `{options_}` stands for the row's options, one `- option` a line under `OPTIONS:`. A template that is `turned`
    asks for an input of the task given its answer (FLAN's "turned around"): its target is free text.
    """

    prompt: str
    target: str
    turned: bool = False

    def fields(self) -> set[str]:
        patterns = string.Formatter().parse(self.prompt), string.Formatter().parse(self.target)
        return {name for pattern in patterns for _, name, _, _ in pattern if name}


def format_options(options: Sequence[str]) -> str:
    """The closed set of answers as FLAN writes it (Wei et al. 2021, https://arxiv.org/abs/2109.01652)."""
    return "OPTIONS:\n" + "\n".join(f"- {option}" for option in options)


@dataclass(frozen=True)
class Task:
    """A source of rows, the templates that word them, and how answers are judged.

    `source(split)` gives a random-access sequence of rows: the same index gives the same row in every process.
    `answer` names the row's field that holds the right answer and `options` the one with the closed set of answers,
    if there is one. Every task has a `cluster`: the unit that is held out to measure what transfers.
    """

    name: str
    cluster: str
    source: Callable[[Split], Sequence[Row]]
    templates: tuple[Template, ...]
    metric: Metric = "exact"
    answer: str = "answer"
    options: str | None = None

    def render(self, row: Row, template: int) -> Example:
        """The row worded by one of the templates (counted modulo their number)."""
        chosen = self.templates[template % len(self.templates)]
        fields = dict(row)
        closed = None
        if self.options is not None:
            closed = tuple(str(option) for option in row[self.options])
            fields["options_"] = format_options(closed)
        if unknown := chosen.fields() - fields.keys():
            name = min(unknown)
            raise Fault(
                f"task {self.name}: template {template % len(self.templates)} asks for the field "
                f"{{{name}}}, which its rows lack; {nearest(name, fields)}"
            )
        return Example(
            prompt=chosen.prompt.format_map(fields) + "\n",
            target=chosen.target.format_map(fields),
            options=None if chosen.turned else closed,
            metric="rouge" if chosen.turned else self.metric,
            task=self.name,
            cluster=self.cluster,
        )
