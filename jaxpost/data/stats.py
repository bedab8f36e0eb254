# SPDX-License-Identifier: Apache-2.0
"""What there is to know about a run's rows before it runs: how many and how long, what is trained, cut, said twice, and
how full the batches will be."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from jaxpost.data.batches.loader import Batch, Counts, Loader, Said, Single, Unit, read
from jaxpost.data.batches.packing import Group
from jaxpost.data.batches.pairs import Pairs, Rankings
from jaxpost.data.blend import Blend
from jaxpost.data.chat.template import Template
from jaxpost.data.prepare.cache import TOGETHER, Track, quiet
from jaxpost.data.prepare.cleaning import Cleaning, left_out
from jaxpost.data.rows.shapes import KNOWN, Dialogue, Prompt, Unpaired, normalise, shape_of
from jaxpost.data.rows.views import Some
from jaxpost.data.tasks import Example
from jaxpost.data.text import Part, answered, as_prompt, parts_of, place, unlearnt
from jaxpost.data.tokenizers import Tokenizer, Tokens, TrainOn

COMPARED = 20_000  # rows that are looked through for near duplicates; of more, evenly spread ones
ALIKE = 0.8
LOOKED = 256  # dialogues in which turns are counted that are only read
BARS = 14  # of a histogram, at most


@dataclass(frozen=True)
class Asked:
    """Rows that are no examples yet: a prompt to be answered, or an answer that is judged by itself. Cut like any."""

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        found = normalise(row, columns)
        if isinstance(found, Unpaired):
            return Said((answered(found.prompt, found.completion, template, place(row)),))
        assert isinstance(found, Prompt)
        if isinstance(found.prompt, str) or template is None:
            return Said(((Part(as_prompt(str(found.prompt)), True),),))
        return Said(((Part(str(template.prompt(found.prompt)), True),),))

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        return Single().fit(group, room, bos)

    def extras(self, rows: Sequence[Sequence[Group]]) -> Batch:
        return {}


UNITS: dict[str, Unit] = {"preference": Pairs(), "ranking": Rankings(), "unpaired": Asked(), "prompt": Asked()}


def unit_of(rows: Sequence[Any], columns: Mapping[str, str] | None = None) -> Unit:
    """How rows like the first are read."""
    return UNITS.get(kind_of(rows, columns), Single())


def kind_of(rows: Sequence[Any], columns: Mapping[str, str] | None = None) -> str:
    """What the first row is: a key of `shapes.KNOWN`, "task" or "tokens"."""
    if isinstance(row := rows[0], Tokens):
        return "tokens"
    return "task" if isinstance(row, Example) else shape_of(row, columns)


@dataclass(frozen=True)
class Stats:
    """`sizes` are the tokens of each row, and `reserved` of all of them are places of a learned prompt. `compared` rows
    were searched for near duplicates, of which there were `near`; `packed` is what the lanes of one epoch of batches
    do, one after the other. `parts` are the sources of a mixture: the name of each, what it is, and how many rows of it
    an epoch holds. `unlearnt` turns of the assistant, in the first `LOOKED` dialogues, are only read because the chat
    template rewrites them."""

    kind: str
    sizes: np.ndarray
    trained: int
    exact: int
    near: int
    compared: int
    packed: tuple[Counts, ...]
    seq_len: int
    packing: str
    parts: tuple[tuple[str, str, int], ...] = ()
    unlearnt: int = 0
    reserved: int = 0

    @property
    def tokens(self) -> int:
        return int(self.sizes.sum())

    @property
    def counts(self) -> Counts:
        return sum(self.packed, Counts())

    @property
    def batches(self) -> int:
        return max(lane.rows for lane in self.packed)


def as_groups(
    rows: Sequence[Any],
    unit: Unit,
    tokenizer: Tokenizer,
    columns: Mapping[str, str] | None,
    train_on: TrainOn,
    track: Track = quiet,
) -> Sequence[Group]:
    """The rows as tokens: themselves if they are, else tokenised and held in memory."""
    if _are_groups(rows):
        return rows
    each = (rows[i] for i in range(len(rows)))
    together = iter(lambda: list(islice(each, TOGETHER)), [])
    groups = (group for some in together for group in read(some, unit, tokenizer, columns, train_on))
    return list(track(groups, len(rows), "tokenising rows"))


def _are_groups(rows: Sequence[Any]) -> bool:
    if isinstance(rows, Blend):  # each source of it is one thing or another
        return all(map(_are_groups, rows.sources.values()))
    return isinstance(rows[0], Group)


def gather(
    rows: Sequence[Any],
    groups: Sequence[Group],
    loader: Callable[[Sequence[Group]], Loader],
    columns: Mapping[str, str] | None = None,
    track: Track = quiet,
) -> Stats:
    """Looks at all rows. `groups` are the same rows as tokens, and `loader` makes one pass over them into batches."""
    sizes, trained, reserved = np.zeros(len(groups), np.int64), 0, 0
    for i in track(range(len(groups)), len(groups), "counting tokens of rows"):
        members = groups[i].members
        sizes[i] = sum(len(tokens.ids) for tokens in members)
        trained += sum(int(tokens.trained.sum()) for tokens in members)
        reserved += sum(int((tokens.ids < 0).sum()) for tokens in members)
    kind = kind_of(rows, columns)
    exact, near, compared = (0, 0, 0) if kind == "tokens" else _said_twice(rows, columns, track)
    packer = loader(groups)
    packed = tuple(track(packer.survey(), packer.batch, "packing lanes"))
    return Stats(
        kind, sizes, trained, exact, near, compared, packed, packer.seq_len, packer.packing, _parts(rows, columns),
        _unlearnt(rows, columns, packer.tokenizer.template), reserved,
    )  # fmt: skip


def _unlearnt(rows: Sequence[Any], columns: Mapping[str, str] | None, template: Template) -> int:
    first = (rows[i] for i in range(min(LOOKED, len(rows)))) if template.model else ()
    talks = (row for row in first if isinstance(row, Mapping) and isinstance(normalise(row, columns), Dialogue))
    return sum(unlearnt(parts_of(row, columns, template)) for row in talks)


def _parts(rows: Sequence[Any], columns: Mapping[str, str] | None) -> tuple[tuple[str, str, int], ...]:
    if not isinstance(rows, Blend):
        return ()
    return tuple((name, kind_of(rows.sources[name], columns), n) for name, n in rows.quotas.items() if n)


def _said_twice(rows: Sequence[Any], columns: Mapping[str, str] | None, track: Track) -> tuple[int, int, int]:
    """Exact duplicates among all rows, near ones among some, and how many these are."""
    exact = left_out(rows, Cleaning(), columns, track=track)
    others = np.array([i for i in range(len(rows)) if i not in exact])
    some = others[np.linspace(0, len(others) - 1, min(COMPARED, len(others))).astype(int)]
    found = left_out(Some(rows, some), Cleaning(exact=False, near=ALIKE), columns, track=track)
    return len(exact), len(found), len(some)


def table(stats: Stats) -> Table:
    """The numbers by name, for the terminal."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, told in _lines(stats):
        grid.add_row(name, told)
    return grid


def _lines(stats: Stats) -> Iterator[tuple[str, str]]:
    counts, rows, sizes = stats.counts, len(stats.sizes), stats.sizes
    if stats.parts:
        each = (f"{name}: {n:,} of {_shape(kind)} ({100 * n / rows:.1f} %)" for name, kind, n in stats.parts)
        yield "rows", "\n".join([f"{rows:,}", *each])
    else:
        yield "rows", f"{rows:,} of {_shape(stats.kind)}"
    middle, most = np.percentile(sizes, (50, 95))
    yield (
        "tokens",
        f"{stats.tokens:,}; {sizes.mean():,.0f} a row (median {middle:,.0f}, 95 % below {most:,.0f}, "
        f"from {sizes.min():,} to {sizes.max():,})",
    )
    if stats.reserved:
        yield "learned prompt", f"{stats.reserved:,} places, {100 * stats.reserved / stats.tokens:.1f} % of them"
    yield "trained", f"{stats.trained:,}, {100 * stats.trained / max(1, stats.tokens):.1f} % of them"
    if stats.unlearnt:
        told = f"{stats.unlearnt:,} turns of the assistant, which the chat template rewrites (in {LOOKED} rows at most)"
        yield "only read", told
    if stats.packing != "blocks":
        long = counts.truncated + counts.overlong
        left = counts.overlong + counts.untrained
        told = f"{counts.truncated - counts.untrained:,} cut, {left:,} left out" if long else "none"
        yield "longer than a row", told
    if counts.uses:
        yield "compared", counts.uses
    if stats.compared:
        near = f"{stats.near:,} more nearly so (Jaccard {ALIKE} or above)"
        sample = f", in a sample of {stats.compared:,}" if stats.compared < rows - stats.exact else ""
        yield "duplicates", f"{stats.exact:,} exact, {near}{sample}"
    yield (
        "packed",
        f"{counts.rows:,} rows of {stats.seq_len:,}, {100 * counts.fill:.1f} % full: {stats.batches:,} batches of "
        f"{len(stats.packed)} an epoch",
    )


def _shape(kind: str) -> str:
    return KNOWN.get(kind, {"task": "worded tasks", "tokens": "token ids"}.get(kind, ""))


def histogram(stats: Stats, width: int = 40) -> Text:
    """How many rows are how long, a line a range of tokens; what is longer than a row of a batch stands out."""
    edges = _edges(stats.sizes)
    numbers = np.histogram(stats.sizes, edges)[0]
    names = [f"{low:,}-{high - 1:,}" for low, high in zip(edges, edges[1:], strict=False)]
    names[-1] = f"{edges[-2]:,}-" if edges[-1] < stats.sizes.max() else names[-1]
    numbers[-1] += int((stats.sizes > edges[-1]).sum())
    left, middle = max(map(len, names)), max(len(f"{n:,}") for n in numbers)
    shown = Text()
    for name, number, low in zip(names, numbers.tolist(), edges, strict=False):
        bar = "█" * math.ceil(width * number / numbers.max()) if number else ""
        shown.append(f"{name:>{left}}  {number:>{middle},}  ")
        shown.append(bar, style="red" if low > stats.seq_len + 1 and stats.packing != "blocks" else "green")
        shown.append("\n")
    shown.rstrip()
    return shown


def _edges(sizes: np.ndarray) -> list[int]:
    """Round numbers; the few longest rows share the last range."""
    top = int(np.percentile(sizes, 99.5)) + 1
    width = next(
        step
        for power in range(12)
        for step in (10**power, 2 * 10**power, 5 * 10**power)
        if top // step - int(sizes.min()) // step < BARS
    )
    low = int(sizes.min()) // width * width
    return list(range(low, top + width, width))
