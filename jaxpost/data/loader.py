# SPDX-License-Identifier: Apache-2.0
"""Rows of text to batches of tokens: the same batches from a seed, however many processes share the work.

The stream of shuffled examples is cut into as many lanes as a global batch has rows: lane i reads examples i, i + B,
i + 2B, ... and packs them by itself. A process builds the rows of its lanes only, and never needs to know of others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from jaxpost.data.packing import Blocks, Overlong, Packer, Shifted, lay
from jaxpost.data.text import parts_of, place
from jaxpost.data.tokenizers import Tokenizer, Tokens, TrainOn, tokenise
from jaxpost.faults import Fault

Batch = dict[str, np.ndarray]
Packing = Literal["none", "pack", "blocks"]
WINDOW = 16  # examples that wait per lane when packing
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
    """What became of the examples. `positions` counts the rows' whole length, so tokens / positions is the fill."""

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
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


class Order:
    """Which row the n-th example of the endless stream is: every epoch a shuffle of its own, none if seed is None."""

    def __init__(self, rows: int, seed: int | None):
        self._rows, self._seed, self._epoch = rows, seed, (-1, 0)

    def __call__(self, n: int) -> tuple[int, int]:
        """The epoch and the index within it."""
        epoch, index = divmod(n, self._rows)
        if self._seed is None:
            return epoch, index
        from grain.experimental import index_shuffle  # here, because it brings jax: most of a second

        if self._epoch[0] != epoch:
            # Hashed, or else epoch 1 of seed 0 would be epoch 0 of seed 1.
            self._epoch = epoch, int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
        return epoch, index_shuffle(index, max_index=self._rows - 1, seed=self._epoch[1], rounds=4)


class Lane:
    """One row of every batch: its share of the stream, its packer, and the count of what it did."""

    def __init__(self, loader: "Loader", number: int):
        self._loader, self._number = loader, number
        self.counts = Counts()
        self._packer = (
            Blocks(self._fetch, loader.seq_len)
            if loader.packing == "blocks"
            else Packer(self._fetch, loader.seq_len, WINDOW if loader.packing == "pack" else 1)
        )

    def next(self) -> list[Shifted] | None:
        """The examples of the lane's next row; None once the epochs are over."""
        examples = self._packer.next()
        if examples is not None:
            self.counts += Counts(
                examples=len(examples),
                tokens=sum(len(example.inputs) for example in examples),
                trained=int(sum(example.mask.sum() for example in examples)),
                rows=1,
                positions=self._loader.seq_len,
            )
        return examples

    def _fetch(self, k: int) -> Tokens | None:
        tokens, where = self._loader.example(self._number + k * self._loader.batch)
        counts, limit = self.counts, self._loader.seq_len + 1
        if self._loader.packing != "blocks" and len(tokens.ids) > limit:
            if self._loader.overlong == "error":
                raise Fault(f"{where}: {len(tokens.ids)} tokens, but a row of seq_len {limit - 1} holds {limit}; "
                            "raise seq_len, or set overlong to 'truncate' or 'drop'")
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
        return self._packer.save() | {"counts": asdict(self.counts)}

    def restore(self, saved: dict[str, Any]) -> None:
        self._packer.restore(saved)
        self.counts = Counts(**saved["counts"])  # after the packer, whose fetching counted the waiting examples again


class Loader:
    """Batches of `batch` rows (over all processes) of `seq_len` positions from random-access rows of text.

    `rows` are whatever `parts_of` understands; if they have a method `epoch(n)`, it gives the rows of that epoch (all
    of one length). `packing`: "none" one example a row, "pack" as many as fit, "blocks" documents joined and cut.
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
        if batch % process_count:
            raise Fault(f"a batch of {batch} rows cannot be shared equally by {process_count} processes; "
                        f"use a multiple of {process_count}")
        self.rows, self.tokenizer, self.batch, self.seq_len, self.packing = rows, tokenizer, batch, seq_len, packing
        self.epochs, self.train_on, self.overlong, self.columns = epochs, train_on, overlong, columns
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
        row = self.rows.epoch(epoch)[index] if hasattr(self.rows, "epoch") else self.rows[index]
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
        """What this process's lanes have done so far. Examples that wait to be packed are not in it yet."""
        return sum((lane.counts for lane in self._lanes.values()), Counts())

    def why(self, counts: Counts) -> str:
        return (f"{counts.overlong} were longer than seq_len {self.seq_len}, {counts.untrained} had no trained token "
                f"left when cut to it; raise seq_len, or check that prompts are shorter than that")

    def save(self) -> dict[str, Any]:
        """The position. Processes may save each its own, or `join` theirs to resume with another number of them."""
        return {"step": self._step, "lanes": {str(i): lane.save() for i, lane in self._lanes.items()}}

    def restore(self, saved: dict[str, Any]) -> None:
        missing = [i for i in self._lanes if str(i) not in saved["lanes"]]
        if missing:
            raise Fault(f"the saved position lacks lanes {missing} (it has {len(saved['lanes'])}): the batch size has "
                        "changed, or it was saved by another process; start the data anew, or join all positions")
        self._step = saved["step"]
        for i, lane in self._lanes.items():
            lane.restore(saved["lanes"][str(i)])


def join(saves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The position of the whole stream from what its processes saved at the same step: any of them can restore it."""
    if len(steps := {saved["step"] for saved in saves}) > 1:
        raise Fault(f"positions saved at different steps ({sorted(steps)}) are not of one stream")
    return {"step": saves[0]["step"], "lanes": {i: lane for saved in saves for i, lane in saved["lanes"].items()}}
