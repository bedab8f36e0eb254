# SPDX-License-Identifier: Apache-2.0
"""Rows as prompts to be answered: an endless stream of them, in a seeded order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxpost.data.batches.order import Order
from jaxpost.data.batches.packing import Overlong
from jaxpost.data.rows import shapes
from jaxpost.data.rows.fields import renamed
from jaxpost.data.rows.shapes import as_messages, normalise
from jaxpost.data.rows.views import row_of
from jaxpost.data.tasks import Example
from jaxpost.data.text import as_prompt, place
from jaxpost.data.tokenizers import Tokenizer, newest, prompt_ids
from jaxpost.faults import Fault

HOPELESS = 256  # prompts in a row that did not fit; no other will


class Request(NamedTuple):
    """A prompt as the model reads it, as text, and the fields of the row that it is from: a reward may need them."""

    ids: tuple[int, ...]
    text: str
    row: Mapping[str, Any]


def request(row: Any, tokenizer: Tokenizer, columns: Mapping[str, str] | None = None) -> Request:
    """The prompt of a row of any shape that has one, worded as in training: what stands before its completion, or
    before what is compared; of a dialogue all but the assistant's last turn. Where the row answers it in one way, that
    is the field `answer`."""
    if isinstance(row, Example):
        fields = {"prompt": row.prompt, "answer": row.target, "options": row.options, "task": row.task}
        return Request(tuple(prompt_ids(tokenizer, row.prompt)), row.prompt, fields)
    where, said = place(row), normalise(row, columns)
    prompt, answer = _asked(said, where)
    if isinstance(prompt, str):
        text = as_prompt(prompt, _begun(said))
    else:
        tools = said.tools if isinstance(said, shapes.Dialogue) else ()
        text = tokenizer.template.prompt(prompt, tools, where)
    given = dict(renamed(row, columns).row)
    fields = {"answer": answer, **given} if answer is not None and "answer" not in given else given
    return Request(tuple(prompt_ids(tokenizer, text)), text, {**fields, "prompt": str(text)})


def _asked(said: shapes.Shape, where: str) -> tuple[shapes.Said, str | None]:
    if isinstance(said, shapes.Dialogue):
        last = max((i for i, turn in enumerate(said.messages) if turn["role"] == "assistant"), default=None)
        answer = None if last is None else _text(said.messages[last:])
        return said.messages[:last], answer
    if isinstance(said, shapes.Text | shapes.Marked):
        raise Fault(f"{where}: a row without a prompt, and this run samples answers to prompts; map one (data.columns)")
    return said.prompt, _text(said.completion) if isinstance(said, shapes.Completion) else None


def _begun(said: shapes.Shape) -> str:
    """What answers a prompt in training: where that begins with white space, nothing else sets the two apart."""
    if isinstance(said, shapes.Completion | shapes.Unpaired):
        answers = (said.completion,)
    elif isinstance(said, shapes.Preference):
        answers = said.chosen, said.rejected
    else:
        answers = said.completions if isinstance(said, shapes.Ranking) else ()
    written = [answer for answer in answers if isinstance(answer, str)]
    return next((answer for answer in written if not answer[:1].isspace()), written[0] if written else "")


def _text(answer: shapes.Said) -> str | None:
    said = as_messages(answer, "assistant")[0].get("content")
    return said if isinstance(said, str) else None


@dataclass
class Prompts:
    """Prompts of at most `room` tokens. What is longer is left out (`drop`), loses its beginning (`truncate`) or is a
    `Fault` (`error`); `counts` says how many of which. `seed=None` keeps the rows' order, and ends with them."""

    rows: Sequence[Any]
    tokenizer: Tokenizer
    columns: Mapping[str, str] | None
    room: int
    overlong: Overlong = "drop"
    seed: int | None = 0
    number: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"read": 0, "left out": 0, "truncated": 0})

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise Fault("there is no prompt: the data set is empty")
        if self.room <= self.tokenizer.virtual.count:
            raise Fault(
                f"rollout.prompt_tokens is {self.room}, and {self.tokenizer.virtual.count} of them are the places of a "
                "learned prompt; raise it"
            )
        self._order = Order(len(self.rows), self.seed)

    def next(self) -> Request:
        """The next prompt that fits; StopIteration behind the last of rows that are read once."""
        for _ in range(HOPELESS):
            if self.seed is None and self.number >= len(self.rows):
                raise StopIteration
            epoch, index = self._order(self.number)
            self.number += 1
            self.counts["read"] += 1
            found = request(row_of(self.rows, epoch, index), self.tokenizer, self.columns)
            if len(found.ids) <= self.room:
                return found
            if self.overlong == "error":
                raise Fault(
                    f"{place(row_of(self.rows, epoch, index))}: a prompt of {len(found.ids)} tokens, where "
                    f"rollout.prompt_tokens allows {self.room}; raise it, or set rollout.overlong to drop or truncate"
                )
            if self.overlong == "truncate":
                self.counts["truncated"] += 1
                ids = np.asarray(found.ids, np.int32)
                return found._replace(ids=tuple(ids[newest(ids, self.room, self.tokenizer.bos)].tolist()))
            self.counts["left out"] += 1
        raise Fault(
            f"the last {HOPELESS} prompts were all longer than rollout.prompt_tokens, {self.room}; raise it, or set "
            "rollout.overlong to truncate"
        )

    def __iter__(self) -> Iterator[Request]:
        while True:
            try:
                yield self.next()
            except StopIteration:
                return

    def save(self) -> dict[str, Any]:
        return {"number": self.number, "counts": dict(self.counts)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.number, self.counts = saved["number"], dict(saved["counts"])
