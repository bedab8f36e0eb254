# SPDX-License-Identifier: Apache-2.0
"""Rows as single answers that are good or bad: as they are, or the two halves of preferences; each with an answer to
another prompt beside it, where a KL divergence is to be estimated from it.

Which other answer is a matter of the rows alone, neither of their order in a run nor of batches: that of the row half
the data set further on, or of the next one behind it with another prompt. (TRL takes the next of the batch, which may
answer the same prompt, as the other half of a preference does, and is another one on more devices.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpost.data.batches.packing import Why
from jaxpost.data.rows.shapes import KNOWN, Preference, Ranking, Unpaired, alike, as_messages, normalise, shape_of
from jaxpost.data.rows.views import View, place_of
from jaxpost.data.sources.record import Record
from jaxpost.faults import Fault

TRIED = 64  # rows that are looked at for one with another prompt


class Verdict(Record):
    """A row of one answer; `why` says what is wrong with the preference that it is a half of, if it teaches nothing."""

    def __init__(self, fields: Mapping[str, Any], where: str, why: Why | None = None):
        super().__init__(fields, where)
        self.why = why


@dataclass(frozen=True)
class Judged(View):
    """The rows as `Unpaired` ones under our names. Preferences are two each, the chosen answer and then the rejected,
    which share the row's weight and are left out together where they teach nothing."""

    rows: Sequence[Any]
    columns: Mapping[str, str] | None = None

    @property
    def halves(self) -> int:
        """How many of these rows are made of one."""
        return 2 if len(self.rows) and shape_of(self.rows[0], self.columns) == "preference" else 1

    def __len__(self) -> int:
        return len(self.rows) * self.halves

    def __getitem__(self, index: int) -> Verdict:
        number, half = divmod(range(len(self))[index], self.halves)
        row = self.rows[number]
        found, where = normalise(row, self.columns), getattr(row, "where", f"row {number}")
        if isinstance(found, Preference):
            fields = {"prompt": found.prompt, "completion": (found.chosen, found.rejected)[half], "label": half == 0}
            why = "tied" if found.tied else "equal" if found.chosen == found.rejected else None
            return Verdict({**fields, "weight": found.weight}, where, why)
        if not isinstance(found, Unpaired):
            kind = shape_of(row, self.columns)
            wanted = f"{KNOWN['unpaired']}, or {KNOWN['preference']}"
            raise Fault(f"{where}: a row of the shape {kind!r} ({KNOWN[kind]}), where {wanted}, is needed")
        fields = {"prompt": found.prompt, "completion": found.completion, "label": found.label, "weight": found.weight}
        return Verdict(fields | ({"mismatched": found.mismatched} if found.mismatched is not None else {}), where)

    def place_of(self, index: int, epoch: int = 0) -> str:
        return place_of(self.rows, epoch, index // self.halves)


@dataclass(frozen=True)
class Mismatched(View):
    """Rows of `Judged`, each with the answer of another one in its field `mismatched`, unless it has such a field."""

    rows: Sequence[Any]

    def __getitem__(self, index: int) -> Verdict:
        row = self.rows[index]
        if "mismatched" in row:
            return row
        prompt, answer, other = row["prompt"], row["completion"], self._other(range(len(self))[index], row["prompt"])
        if isinstance(answer, str) != isinstance(other, str):  # of two sources, say
            prompt, answer, other = alike(as_messages(prompt, "user"), answer, other)
        return Verdict({**row, "prompt": prompt, "completion": answer, "mismatched": other}, row.where, row.why)

    def _other(self, index: int, prompt: Any) -> Any:
        count = len(self)
        if count < 2:
            raise Fault(f"{self.name} has one row, and the KL divergence is estimated from another row's answer")
        far = index + count // 2
        tried = (self.rows[(far + step) % count] for step in range(min(TRIED, count)))
        return next((row for row in tried if row["prompt"] != prompt), self.rows[far % count])["completion"]

    def place_of(self, index: int, epoch: int = 0) -> str:
        return place_of(self.rows, epoch, index)


@dataclass(frozen=True)
class Chosen(View):
    """Rows that are compared or judged as prompts with the best answer that is known; other rows as they are."""

    rows: Sequence[Any]
    columns: Mapping[str, str] | None = None

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        found = normalise(row, self.columns)
        if isinstance(found, Preference):
            best = found.chosen
        elif isinstance(found, Unpaired):
            best = found.completion
        elif isinstance(found, Ranking) and found.scores:
            best = found.completions[found.scores.index(max(found.scores))]
        else:
            return row
        return Record({"prompt": found.prompt, "completion": best}, getattr(row, "where", f"row {index}"))
