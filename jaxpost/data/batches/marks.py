# SPDX-License-Identifier: Apache-2.0
"""Labels at the tokens that they belong to, in the arrays that a batch has anyway.

`targets` holds classes instead of next tokens and `mask` what each of them counts. A class stands at the last token of
what it is the class of, in a causal model the only one that has seen all of it: of the whole text, or of a word. Of a
span, the first token's target is 1, the last one's 2, or one token's 3, and each end counts one half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpost.data.batches.loader import Batch, Said
from jaxpost.data.batches.packing import Group
from jaxpost.data.chat.template import Template
from jaxpost.data.parts import Part
from jaxpost.data.rows.labels import Classes, Kind, Labelled, labelled
from jaxpost.data.rows.views import View, place_of
from jaxpost.data.text import place
from jaxpost.data.tokenizers import Tokenizer, Tokens
from jaxpost.data.tokenizers.protocol import align
from jaxpost.faults import Fault


@dataclass(frozen=True)
class Marks:
    """Groups of one example whose `trained` tokens are marked, with the target of each mark among their values."""

    kind: Kind
    seq_len: int

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        raise Fault("labels belong to tokens, so rows that have some come as Marked, not as text")

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        """The text is cut from the right. A text's class goes to the last token that is left, a word's is lost with
        it; a span that is cut, or a text cut down to its reserved places, is left out."""
        ids, trained = (field[: room + 1] for field in group.members[0])
        if (group.members[0].ids[room:] < 0).any() or ids[room - 1] < 0:
            return None
        if self.kind == "sequence":
            return Group((Tokens(ids, np.arange(room + 1) == room - 1),), group.values)
        left = int(trained[:room].sum())
        if not left or (self.kind == "span" and left < len(group.values)):
            return None
        trained = trained & (np.arange(room + 1) < room)
        return Group((Tokens(ids, trained),), group.values[:left])

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        targets = np.zeros((len(rows), self.seq_len), np.int32)
        mask = np.zeros((len(rows), self.seq_len), np.float32)
        for i, row in enumerate(rows):
            start = 0
            for group in row:
                at = start + np.flatnonzero(group.members[0].trained)
                targets[i, at] = group.values
                mask[i, at] = 1.0 / len(at) if self.kind == "span" else 1.0
                start += group.size
        return {"targets": targets, "mask": mask}


@dataclass(frozen=True)
class Marked(View):
    """Rows with labels as the groups that `Marks` lays out, each tokenised when it is read."""

    rows: Sequence[Any]
    tokenizer: Tokenizer
    kind: Kind
    classes: Classes
    columns: Mapping[str, str] | None = None

    def __getitem__(self, index: Any) -> Group:
        row = self.rows[index]
        return marked(self.tokenizer, labelled(row, self.kind, self.classes, self.columns), self.kind, place(row))

    def place_of(self, index: int, epoch: int = 0) -> str:
        return place_of(self.rows, epoch, index)


def marked(tokenizer: Tokenizer, said: Labelled, kind: Kind, where: str) -> Group:
    """The tokens of a text, between bos and eos (which is not read), marked where its labels belong."""
    parts = (Part(said.before, False), Part(said.text, True, opens=True)) if said.before else (Part(said.text, True),)
    tokens, spans = align(tokenizer, parts, "all", where)
    # Tokens that stand for characters; the bos and eos may, where a text writes them out.
    written = np.flatnonzero((tokens.ids[:-1] >= 0) & (spans[:-1, 1] > spans[:-1, 0]))
    ranges = np.asarray(said.ranges, np.int64).reshape(-1, 2) + len(said.before)
    first = np.searchsorted(spans[written, 1], ranges[:, 0], side="right")
    last = np.searchsorted(spans[written, 0], ranges[:, 1], side="left") - 1
    if not len(ranges) or (first > last).any():
        raise Fault(f"{where}: what has a label has no token of its own; leave out empty texts and words")
    if kind == "span":
        ends, values = written[[first[0], last[0]]], (1, 2) if first[0] < last[0] else (3,)
    else:
        ends, values = written[last], said.classes
    if kind == "token" and (np.diff(ends) == 0).any():
        again = int(np.argmax(np.diff(ends) == 0))
        raise Fault(
            f"{where}: two words with labels end in one token, {tokenizer.piece(int(tokens.ids[ends[again]]))!r}"
        )
    trained = np.zeros(len(tokens.ids), bool)
    trained[ends] = True
    return Group((Tokens(tokens.ids, trained),), tuple(float(value) for value in values))
