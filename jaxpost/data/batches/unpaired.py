# SPDX-License-Identifier: Apache-2.0
"""Answers that are each good or bad by themselves, and beside each, where it is asked for, an answer to something else.

That other answer behind the same prompt is what KTO estimates a KL divergence from. It is part of the row (see
`rows/judged.py`), so it is the same however rows are batched, packed and shared among processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpost.data.batches.loader import Batch, Said
from jaxpost.data.batches.packing import MOST, Group
from jaxpost.data.batches.pairs import Handling, comparable, numbers, unfit
from jaxpost.data.chat.template import Template
from jaxpost.data.rows.shapes import KNOWN, Unpaired, normalise, shape_of
from jaxpost.data.text import answered, place
from jaxpost.faults import Fault


@dataclass(frozen=True)
class Verdicts:
    """Rows of a completion and its `label`. With `mismatched`, example i is segment 2i - 1 and the mismatched answer
    behind its prompt segment 2i, else example i is segment i. A batch holds besides the usual arrays, E being MOST / 2
    or MOST,

    - label float32[rows, E]: 1 for a good answer, 0 for a bad one;
    - weight float32[rows, E]: what example i counts, 1 unless the data say something else; 0 where there is none;
    - reference float32[rows, MOST], if `reference`: what was stored for segment s + 1.

    Answers that are `whole` are read to their end token, where they are scored, instead of to the one before it.
    """

    handling: Handling = Handling()
    mismatched: bool = True
    whole: bool = False
    reference: bool = False

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        found, where = normalise(row, columns), place(row)
        if not isinstance(found, Unpaired):
            kind = shape_of(row, columns)
            raise Fault(f"{where}: a row of the shape {kind!r} ({KNOWN[kind]}), where {KNOWN['unpaired']} is needed")
        why = getattr(row, "why", None) or unfit((found.completion,), False, self.handling)
        if why is not None:
            return self.handling.judged(why, where)
        answers = [found.completion]
        if self.mismatched:
            if found.mismatched is None:
                raise Fault(f"{where}: no answer to something else stands beside this one; add a field 'mismatched'")
            answers.append(found.mismatched)
        examples = tuple(answered(found.prompt, answer, template, where) for answer in answers)
        return Said(examples, (float(found.label), found.weight), whole=self.whole)

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        return comparable(group, room, bos, alike=True)

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        most = MOST // 2 if self.mismatched else MOST
        label, weight = (numbers(rows, slice(i, i + 1), most) for i in (0, 1))
        stored = {"reference": numbers(rows, slice(2, 4), MOST)} if self.reference else {}
        return {"label": label, "weight": weight} | stored
