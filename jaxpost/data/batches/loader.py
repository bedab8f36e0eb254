# SPDX-License-Identifier: Apache-2.0
"""Rows of text to batches of tokens: the same batches from a seed, however many processes share the work.

The stream of shuffled examples is cut into as many lanes as a global batch has rows: lane i reads examples i, i + B,
i + 2B, ... and packs them by itself. A process builds the rows of its lanes only, and never needs to know of others.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from jaxpost.data.batches.counts import Counts as Counts
from jaxpost.data.batches.order import Order
from jaxpost.data.batches.packing import Blocks, Group, Overlong, Packer, Why, lay, shift
from jaxpost.data.chat.template import Template
from jaxpost.data.rows.views import place_of, row_of
from jaxpost.data.rows.votes import Votes
from jaxpost.data.text import Part, parts_of, place
from jaxpost.data.tokenizers import Tokenizer, Tokens, TrainOn, check_ids, reserve, tokenise, tokenise_batch
from jaxpost.faults import Fault, nearest

Batch = dict[str, np.ndarray]
Packing = Literal["none", "pack", "blocks"]
DEPTH = 8  # rows' worth of examples that wait in a lane that packs
AHEAD = 8  # rows of a lane tokenised in one call
HOPELESS = 256  # a lane that had to leave out so many examples and kept none will not find any


class BatchSource(Protocol):
    """Anything that a training loop can draw batches from: a loader, a rollout."""

    def next(self, state: Any = None) -> Batch:
        """This process's rows of the next batch; StopIteration at the end."""
        ...

    def save(self) -> dict[str, Any]:
        """The position, as JSON can hold it."""
        ...

    def restore(self, saved: dict[str, Any]) -> None: ...


class Said(NamedTuple):
    """The examples of a row, as text, and what else its group will hold. Such as are `whole` are read to their last
    token, which is otherwise only said."""

    examples: tuple[tuple[Part, ...], ...]
    values: tuple[float, ...] = ()
    why: Why | None = None
    votes: Votes = Votes()
    whole: bool = False

    def group(self, members: Iterable[Tokens]) -> Group:
        read = (Tokens(np.append(m.ids, 0), np.append(m.trained, False)) if self.whole else m for m in members)
        return Group(tuple(read), self.values, self.why, self.votes[:2])


class Unit(Protocol):
    """What one row of data is to a run: the examples it becomes, and what a batch says about them besides tokens."""

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said: ...

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        """A group that is larger than `room` positions cut to them; None if nothing would be left to learn."""
        ...

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        """What the batch holds besides the usual arrays, with a leading axis of rows."""
        ...


@dataclass(frozen=True)
class Single:
    """A row is one example, cut from the right: left out if that would cut into its reserved places."""

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        return Said((parts_of(row, columns, template),))

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        ids, trained = (field[: room + 1] for field in group.members[0])
        whole = not (group.members[0].ids[room + 1 :] < 0).any()
        return Group((Tokens(ids, trained),)) if trained[1:].any() and whole else None

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        return {}


def read(
    rows: Sequence[Any], unit: Unit, tokenizer: Tokenizer, columns: Mapping[str, str] | None, train_on: TrainOn
) -> list[Group]:
    """What the rows are to a run, tokenised: faster together than one by one. Rows that are tokens are taken as they
    are, with the tokenizer's reserved places: of a mixture, some sources may be."""
    if any(isinstance(row, Group | Tokens) for row in rows):
        told = iter(read([r for r in rows if not isinstance(r, Group | Tokens)], unit, tokenizer, columns, train_on))
        taken = (Group((reserve(tokenizer, row, "a row"),)) if isinstance(row, Tokens) else row for row in rows)
        return [row if isinstance(row, Group) else next(told) for row in taken]
    told = [unit.said(row, columns, tokenizer.template) for row in rows]
    if len(rows) == 1 and len(told[0].examples) == 1:
        tokens = tokenise(tokenizer, told[0].examples[0], train_on, place(rows[0]))
        return [told[0].group([tokens])]
    where = [place(row) for row, said in zip(rows, told, strict=True) for _ in said.examples]
    every = [parts for said in told for parts in said.examples]
    tokens = iter(tokenise_batch(tokenizer, every, train_on, where))
    return [said.group([next(tokens) for _ in said.examples]) for said in told]


class Lane:
    """One row of every batch: its share of the stream, its packer, and the count of what it did."""

    def __init__(self, loader: "Loader", number: int):
        self._loader, self._number = loader, number
        self.counts = Counts()
        self._packer = (
            Blocks(self._fetch, loader.seq_len)
            if loader.packing == "blocks"
            else Packer(self._fetch, loader.seq_len, DEPTH if loader.packing == "pack" else 0)
        )

    def next(self) -> list[Group] | None:
        """What the lane's next row holds; None once the epochs are over."""
        groups = self._packer.next()
        if groups is not None:
            self.counts += Counts(
                tokens=sum(group.size for group in groups),
                trained=sum(int(tokens.trained[1:].sum()) for group in groups for tokens in group.members),
                rows=1,
                positions=self._loader.seq_len,
            )
        return groups

    def _fetch(self, k: int) -> Group | None:
        loader, counts, n = self._loader, self.counts, self._number + k * self._loader.batch
        group: Group | None = loader.example(n)
        counts.examples += 1
        if group.why is not None:
            setattr(counts, group.why, getattr(counts, group.why) + 1)
            return self._left_out()
        counts.asked, counts.agreeing = counts.asked + group.votes[0], counts.agreeing + group.votes[1]
        if loader.packing == "blocks" or group.size <= loader.seq_len:
            return group
        if loader.overlong == "error":
            held = loader.seq_len + len(group.members)
            raise Fault(
                f"{loader.where(n)}: {group.size + len(group.members)} tokens, but a row of seq_len {loader.seq_len} "
                f"holds {held}; raise seq_len, or set overlong to 'truncate' or 'drop'"
            )
        if loader.overlong == "drop":
            counts.overlong += 1
            return self._left_out()
        counts.truncated += 1
        group = loader.unit.fit(group, loader.seq_len, loader.tokenizer.bos)
        if group is None:
            counts.untrained += 1
            return self._left_out()
        return group

    def _left_out(self) -> None:
        if self.counts.dropped >= HOPELESS and not self.counts.rows:
            raise Fault(f"the first {HOPELESS} examples were all left out: {self._loader.why(self.counts)}")

    def save(self) -> dict[str, Any]:
        return self._packer.save() | {"counts": dict(vars(self.counts))}

    def restore(self, saved: dict[str, Any]) -> None:
        self._packer.restore(saved)
        self.counts = Counts(**saved["counts"])  # after the packer, whose fetching counted the waiting examples again


class Loader:
    """Batches of `batch` rows (over all processes) of `seq_len` positions from random-access rows of text.

    `rows` are whatever `unit` reads, by default what `parts_of` understands, or tokens already; if they are others in
    every epoch, as a mixture's, they have a method `at(epoch, index)`. `packing`: "none" one row's examples a row,
    "pack" as many as fit, "blocks" documents joined and cut. What is longer than a row is handled by `overlong` and
    counted. Endless, unless `epochs` is given: then the last batch is filled up with empty rows, and StopIteration
    follows. `seed=None` keeps the rows' order.

    A batch maps tokens, targets, segments, positions (int32) and mask (float32) to [batch / process_count, seq_len]
    arrays: rows process_index * batch / process_count and following of the global batch.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        tokenizer: Tokenizer,
        batch: int,
        seq_len: int,
        packing: Packing = "none",
        seed: int | None = 0,
        epochs: int | None = None,
        train_on: TrainOn = "completion",
        overlong: Overlong = "truncate",
        columns: Mapping[str, str] | None = None,
        process_index: int = 0,
        process_count: int = 1,
        unit: Unit = Single(),  # noqa: B008 (it has no state)
    ):
        if not len(rows):
            raise Fault(f"{getattr(rows, 'name', 'the data set')} is empty: there is nothing to train on")
        for name, value in (("batch", batch), ("seq_len", seq_len), ("epochs", epochs)):
            if value is not None and value < 1:
                raise Fault(f"{name} must be at least 1, not {value}")
        for name, value, kinds in (("packing", packing, Packing), ("overlong", overlong, Overlong)):
            if value not in get_args(kinds):
                raise Fault(f"no {name} {value!r}; {nearest(value, get_args(kinds))}")
        if packing == "blocks" and not isinstance(unit, Single):
            raise Fault("packing 'blocks' joins documents, and answers that are compared must stay whole; use 'pack'")
        if train_on == "all" and not isinstance(unit, Single):
            raise Fault("train_on 'all' counts prompts too, and answers are compared without them; use 'completion'")
        if tokenizer.virtual.count and packing == "blocks":
            raise Fault("packing 'blocks' joins documents, and each would need a learned prompt of its own; use 'pack'")
        if tokenizer.virtual.count >= seq_len:
            raise Fault(
                f"a prompt longer than the context: the {tokenizer.virtual.count} places of the learned prompt leave "
                f"no room in rows of seq_len {seq_len}; raise seq_len, or learn a shorter one"
            )
        if batch % process_count:
            raise Fault(
                f"a batch of {batch} rows cannot be shared equally by {process_count} processes; "
                f"use a multiple of {process_count}"
            )
        self.rows, self.tokenizer, self.batch, self.seq_len, self.epochs = rows, tokenizer, batch, seq_len, epochs
        self.packing: Packing = packing
        self.train_on: TrainOn = train_on
        self.overlong: Overlong = overlong
        self.columns, self.unit = columns, unit
        self._made = {"rows": len(rows), "batch": batch, "seq_len": seq_len, "packing": packing, "seed": seed}
        self._made |= {"learned prompt": f"{tokenizer.virtual.count} {tokenizer.virtual.place}"}
        self._order = Order(len(rows), seed)
        self._stop = math.inf if epochs is None else epochs * len(rows)
        self._ahead: dict[int, Group] = {}  # rows of the stream that were tokenised before they were asked for
        share = batch // process_count
        self._lanes = {i: Lane(self, i) for i in range(process_index * share, (process_index + 1) * share)}
        self._step = 0
        # Lanes pack by themselves and end at different batches. Processes must end together, and each sees only its
        # own lanes: so, and only so, the end is counted out beforehand.
        self._end = self.batches() if epochs is not None and process_count > 1 else None

    def example(self, n: int) -> Group:
        """What the n-th row of the stream holds, tokenised; IndexError behind the last epoch."""
        if (group := self._ahead.pop(n, None)) is not None:
            return group
        row = self._row(n)
        if isinstance(row, Group | Tokens):
            return self._read([n], [row])[0]
        # With those that the lane asks for next: together they take half the time. A fault in one of them is not yet
        # anybody's; it is met again when its turn comes.
        numbers = [later for later in range(n, n + AHEAD * self.batch, self.batch) if later < self._stop]
        try:
            rows = [row, *map(self._row, numbers[1:])]
            groups = self._read(numbers, rows)
        except Fault:
            return self._read([n], [row])[0]
        self._ahead |= zip(numbers[1:], groups[1:], strict=True)
        return groups[0]

    def _read(self, numbers: Sequence[int], rows: Sequence[Any]) -> list[Group]:
        for n, row in zip(numbers, rows, strict=True):
            if isinstance(row, Tokens):  # maybe by another tokenizer
                check_ids(self.tokenizer, row, f"row {self._place(n)[1]}")
        return read(rows, self.unit, self.tokenizer, self.columns, self.train_on)

    def _row(self, n: int) -> Any:
        return row_of(self.rows, *self._place(n))

    def where(self, n: int) -> str:
        """Where the n-th row of the stream is from, for messages."""
        return place_of(self.rows, *self._place(n))

    def _place(self, n: int) -> tuple[int, int]:
        if n >= self._stop:
            raise IndexError(n)
        return self._order(n)

    def next(self, state: Any = None) -> Batch:
        """This process's rows of the next batch. `state` is there for sources that generate: a file has no use."""
        rows = self._rows()
        over = not any(rows) if self._end is None else self._step >= self._end
        if over and not self._step:
            raise Fault(f"not one example could be used: {self.why(self.counts())}")
        if over:
            raise StopIteration
        self._step += 1
        laid = [
            lay([shift(tokens) for group in row for tokens in group.members], self.seq_len, self.tokenizer.pad)
            for row in rows
        ]
        return {name: np.stack([row[name] for row in laid]) for name in laid[0]} | self.unit.extras(rows)

    def _rows(self) -> list[list[Group]]:
        """The next row of every lane, or, if one of them meets a fault, none of any: a position saved then is that
        between two batches."""
        before = {i: lane.save() for i, lane in self._lanes.items()}
        try:
            return [lane.next() or [] for lane in self._lanes.values()]
        except Exception:
            self._restore(before)
            raise

    def batches(self) -> int:
        """How many batches the epochs make, found by packing all of them once (without keeping any). Rows that are no
        tokens yet are tokenised for it."""
        return max(counts.rows for counts in self.survey())

    def survey(self) -> Iterator[Counts]:
        """What becomes of the epochs' examples, lane by lane, without moving: what `batches` takes, and as long."""
        if self.epochs is None:
            raise Fault("an endless stream has no number of batches; give the loader epochs")
        for number in range(self.batch):
            lane = Lane(self, number)
            while lane.next() is not None:
                pass
            yield lane.counts

    def counts(self) -> Counts:
        """What this process's lanes have done so far."""
        return sum((lane.counts for lane in self._lanes.values()), Counts())

    def why(self, counts: Counts) -> str:
        return (
            f"{counts.overlong} were longer than seq_len {self.seq_len}, {counts.untrained} had no trained token "
            f"left when cut to it; raise seq_len, or check that prompts are shorter than that"
            + (f" ({counts.uses})" if counts.useless else "")
        )

    def save(self) -> dict[str, Any]:
        """The position. Processes may save each its own, or `join` theirs to resume with another number of them."""
        lanes = {str(i): lane.save() for i, lane in self._lanes.items()}
        return {"of": self._made, "step": self._step, "lanes": lanes}

    def restore(self, saved: dict[str, Any]) -> None:
        for name, value in self._made.items():
            if (was := saved["of"].get(name, value)) != value:
                raise Fault(
                    f"the data's saved position is of {name} {was!r}, which now is {value!r}: batches cannot "
                    "go on from there; set it back, or start a new run"
                )
        if missing := [i for i in self._lanes if str(i) not in saved["lanes"]]:
            raise Fault(
                f"the data's saved position lacks lanes {missing}: it is that of one process among several; "
                "join the positions of all"
            )
        self._step = saved["step"]
        self._restore({i: saved["lanes"][str(i)] for i in self._lanes})

    def _restore(self, saved: Mapping[int, dict[str, Any]]) -> None:
        """Lanes where they were. The rows that waited in them are read together, and no others with them: what was
        looked ahead otherwise would lie behind the lane, never to be asked for."""
        numbers = [i + k * self.batch for i, lane in saved.items() for k in lane["waiting"]]
        self._ahead = dict(zip(numbers, self._read(numbers, list(map(self._row, numbers))), strict=True))
        for i, lane in self._lanes.items():
            lane.restore(saved[i])
        self._ahead.clear()


def counts_of(saved: dict[str, Any]) -> Counts:
    """What the lanes had done when their loader's position was saved."""
    return sum((Counts(**lane["counts"]) for lane in saved["lanes"].values()), Counts())


def join(saves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The position of the whole stream from what its processes saved at the same step: any of them can restore it."""
    first = saves[0]
    for saved in saves:
        if (saved["step"], saved["of"]) != (first["step"], first["of"]):
            raise Fault(
                f"positions saved at steps {first['step']} and {saved['step']} are not of one stream, or were "
                "made with other settings"
            )
    return first | {"lanes": {i: lane for saved in saves for i, lane in saved["lanes"].items()}}
