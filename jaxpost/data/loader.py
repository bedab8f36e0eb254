# SPDX-License-Identifier: Apache-2.0
"""Rows of text to batches of tokens: the same batches from a seed, however many processes share the work.

The stream of shuffled examples is cut into as many lanes as a global batch has rows: lane i reads examples i, i + B,
i + 2B, ... and packs them by itself. A process builds the rows of its lanes only, and never needs to know of others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from jaxpost.data.order import Order
from jaxpost.data.packing import Blocks, Overlong, Packer, Shifted, lay
from jaxpost.data.text import parts_of, place
from jaxpost.data.tokenizers import Tokenizer, Tokens, TrainOn, check_ids, tokenise
from jaxpost.faults import Fault, nearest

Batch = dict[str, np.ndarray]
Packing = Literal["none", "pack", "blocks"]
DEPTH = 4  # rows' worth of examples that wait in a lane that packs
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


@dataclass
class Counts:
    """What became of the examples.

    `examples` were read, of which `truncated` were cut and `overlong` and `untrained` ones left out (some of the rest
    may still wait to be packed); `rows` of `positions` places were made of them, holding `tokens`, `trained` of them.
    """

    examples: int = 0
    tokens: int = 0
    trained: int = 0
    rows: int = 0
    positions: int = 0
    truncated: int = 0
    overlong: int = 0
    untrained: int = 0

    @property
    def dropped(self) -> int:
        """Examples left out: too long, or with no trained token left once they were truncated."""
        return self.overlong + self.untrained

    @property
    def fill(self) -> float:
        return self.tokens / max(1, self.positions)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: mine + getattr(other, name) for name, mine in vars(self).items()})


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

    def next(self) -> list[Shifted] | None:
        """The examples of the lane's next row; None once the epochs are over."""
        examples = self._packer.next()
        if examples is not None:
            self.counts += Counts(
                tokens=sum(len(example.inputs) for example in examples),
                trained=int(sum(example.mask.sum() for example in examples)),
                rows=1,
                positions=self._loader.seq_len,
            )
        return examples

    def _fetch(self, k: int) -> Tokens | None:
        tokens, where = self._loader.example(self._number + k * self._loader.batch)
        self.counts.examples += 1
        counts, limit = self.counts, self._loader.seq_len + 1
        if self._loader.packing != "blocks" and len(tokens.ids) > limit:
            if self._loader.overlong == "error":
                raise Fault(
                    f"{where}: {len(tokens.ids)} tokens, but a row of seq_len {limit - 1} holds {limit}; "
                    "raise seq_len, or set overlong to 'truncate' or 'drop'"
                )
            if self._loader.overlong == "drop":
                counts.overlong += 1
                return self._left_out()
            counts.truncated += 1
            tokens = Tokens(tokens.ids[:limit], tokens.trained[:limit])
            if not tokens.trained[1:].any():
                counts.untrained += 1
                return self._left_out()
        return tokens

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

    `rows` are whatever `parts_of` understands; if they are others in every epoch, as a mixture's, they have a method
    `at(epoch, index)`. `packing`: "none" one example a row, "pack" as many as fit, "blocks" documents joined and cut.
    Examples longer than a row are handled by `overlong` and counted. Endless, unless `epochs` is given: then the last
    batch is filled up with empty rows, and StopIteration follows. `seed=None` keeps the rows' order.

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
    ):
        if not len(rows):
            raise Fault(f"{getattr(rows, 'name', 'the data set')} is empty: there is nothing to train on")
        for name, value in (("batch", batch), ("seq_len", seq_len), ("epochs", epochs)):
            if value is not None and value < 1:
                raise Fault(f"{name} must be at least 1, not {value}")
        for name, value, kinds in (("packing", packing, Packing), ("overlong", overlong, Overlong)):
            if value not in get_args(kinds):
                raise Fault(f"no {name} {value!r}; {nearest(value, get_args(kinds))}")
        if batch % process_count:
            raise Fault(
                f"a batch of {batch} rows cannot be shared equally by {process_count} processes; "
                f"use a multiple of {process_count}"
            )
        self.rows, self.tokenizer, self.batch, self.seq_len, self.epochs = rows, tokenizer, batch, seq_len, epochs
        self.packing: Packing = packing
        self.train_on: TrainOn = train_on
        self.overlong: Overlong = overlong
        self.columns = columns
        self._made = {"rows": len(rows), "batch": batch, "seq_len": seq_len, "packing": packing, "seed": seed}
        self._order = Order(len(rows), seed)
        share = batch // process_count
        self._lanes = {i: Lane(self, i) for i in range(process_index * share, (process_index + 1) * share)}
        self._step = 0
        # Lanes pack by themselves and end at different batches. Processes must end together, and each sees only its
        # own lanes: so, and only so, the end is counted out beforehand.
        self._end = self.batches() if epochs is not None and process_count > 1 else None

    def example(self, n: int) -> tuple[Tokens, str]:
        """The n-th example of the stream, tokenised, and where it is from; IndexError behind the last epoch."""
        if self.epochs is not None and n >= self.epochs * len(self.rows):
            raise IndexError(n)
        epoch, index = self._order(n)
        at = getattr(self.rows, "at", None)
        row = at(epoch, index) if at else self.rows[index]
        if isinstance(row, Tokens):  # tokenised once and for all
            return check_ids(self.tokenizer, row, f"row {index}"), f"row {index}"
        where = place(row)
        return tokenise(self.tokenizer, parts_of(row, self.columns), self.train_on, where), where

    def next(self, state: Any = None) -> Batch:
        """This process's rows of the next batch. `state` is there for sources that generate: a file has no use."""
        rows = [lane.next() for lane in self._lanes.values()]
        over = not any(rows) if self._end is None else self._step >= self._end
        if over and not self._step:
            raise Fault(f"not one example could be used: {self.why(self.counts())}")
        if over:
            raise StopIteration
        self._step += 1
        laid = [lay(row or [], self.seq_len, self.tokenizer.pad) for row in rows]
        return {name: np.stack([row[name] for row in laid]) for name in laid[0]}

    def batches(self) -> int:
        """How many batches the epochs make, found by tokenising and packing all of them once (without keeping any)."""
        if self.epochs is None:
            raise Fault("an endless stream has no number of batches; give the loader epochs")
        return max(sum(1 for _ in iter(Lane(self, i).next, None)) for i in range(self.batch))

    def counts(self) -> Counts:
        """What this process's lanes have done so far."""
        return sum((lane.counts for lane in self._lanes.values()), Counts())

    def why(self, counts: Counts) -> str:
        return (
            f"{counts.overlong} were longer than seq_len {self.seq_len}, {counts.untrained} had no trained token "
            f"left when cut to it; raise seq_len, or check that prompts are shorter than that"
        )

    def save(self) -> dict[str, Any]:
        """The position. Processes may save each its own, or `join` theirs to resume with another number of them."""
        lanes = {str(i): lane.save() for i, lane in self._lanes.items()}
        return {"of": self._made, "step": self._step, "lanes": lanes}

    def restore(self, saved: dict[str, Any]) -> None:
        for name, value in self._made.items():
            if (was := saved["of"][name]) != value:
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
        for i, lane in self._lanes.items():
            lane.restore(saved["lanes"][str(i)])


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
