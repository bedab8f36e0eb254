# SPDX-License-Identifier: Apache-2.0
"""A run's rows made ready once: cleaned, and made tokens that later epochs, runs and processes of the host read."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from jaxpost.data.batches.loader import Single, Unit, read
from jaxpost.data.batches.packing import Group
from jaxpost.data.blend import Blend
from jaxpost.data.prepare import cache
from jaxpost.data.prepare.cleaning import Cleaning, Kept, cleaned
from jaxpost.data.rows.views import Changing
from jaxpost.data.sources.stored import NotKept
from jaxpost.data.tokenizers import Tokenizer, Tokens, TrainOn
from jaxpost.faults import Fault
from jaxpost.train.progress import track

SAMPLE = 32  # rows by whose lengths it is judged whether a run reads all of them


def prepared(
    rows: Sequence[Any],
    tokenizer: Tokenizer,
    batches: Any,
    columns: Mapping[str, str] | None,
    positions: int | None,
    console: Console,
    unit: Unit = Single(),  # noqa: B008 (it has no state)
) -> Sequence[Any]:
    """The rows that `batches.cleaning` leaves, as tokens if `batches.cache` says so. `positions` is how many places a
    run will fill (None: all rows are read), which decides for "auto": what a run reads a small part of is tokenised as
    it is read. Rows that are others in every epoch stay as they are, and so do tokens."""
    if isinstance(rows, Blend):
        share = {name: rows.quotas[name] / len(rows) for name in rows.sources}
        parts = {
            name: prepared(
                part, tokenizer, batches, columns, positions and round(positions * share[name]), console, unit
            )
            for name, part in rows.sources.items()
        }
        return replace(rows, sources=parts)
    if not len(rows) or isinstance(rows, Changing) or isinstance(rows[0], Tokens | Group):
        if batches.cleaning.does_something:
            raise Fault("batches.cleaning is for rows of files; the built-in tasks and rows of tokens are taken as is")
        return rows
    if batches.cleaning.does_something:
        rows = _cleaned(rows, batches.cleaning, tokenizer, columns, batches.train_on, console, unit)
    if batches.cache == "never" or not (batches.cache == "always" or _worth_it()):
        return rows
    try:
        return _tokenised(rows, tokenizer, batches, columns, positions, console, unit)
    except NotKept as error:
        if batches.cache == "always":
            raise Fault(f"{error}; or set batches.cache to 'auto', which goes on without") from error
        console.print(f"Rows are tokenised as they are read: {error}.", highlight=False, soft_wrap=True)
        return rows


def _tokenised(
    rows: Sequence[Any],
    tokenizer: Tokenizer,
    batches: Any,
    columns: Mapping[str, str] | None,
    positions: int | None,
    console: Console,
    unit: Unit,
) -> Sequence[Any]:
    key = cache.key_of_tokens(rows, tokenizer, unit, columns, batches.train_on)
    made = (cache.folder() / cache.TOKENS / key).is_dir()
    if not made and batches.cache == "auto" and positions is not None:
        sample = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)
        groups = read([rows[int(i)] for i in sample], unit, tokenizer, columns, batches.train_on)
        if positions < np.mean([group.size for group in groups]) * len(rows):
            return rows
    return cache.tokenised(
        rows,
        tokenizer,
        unit,
        columns,
        batches.train_on,
        track=lambda items, total, what: track(items, total, what, console),
        waiting=_waits(console, "tokenises these rows"),
    )


def behind(rows: Sequence[Any]) -> Sequence[Any]:
    """The rows that `prepared` made tokens of."""
    if isinstance(rows, Blend):
        return replace(rows, sources={name: behind(part) for name, part in rows.sources.items()})
    return rows.rows if isinstance(rows, cache.Tokenised) else rows


def _cleaned(
    rows: Sequence[Any],
    cleaning: Cleaning,
    tokenizer: Tokenizer,
    columns: Mapping[str, str] | None,
    train_on: TrainOn,
    console: Console,
    unit: Unit,
) -> Kept:
    def tokens(row: Any) -> int:
        (group,) = read([row], unit, tokenizer, columns, train_on)
        return sum(int((member.ids >= 0).sum()) for member in group.members)

    def shown(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        return track(items, total, what, console)

    kept = cleaned(
        rows,
        cleaning,
        columns,
        tokens if cleaning.counts_tokens else None,
        cache.identity_of(tokenizer) if cleaning.counts_tokens else "",
        track=shown,
        waiting=_waits(console, "cleans these rows"),
        unkept=lambda error: console.print(
            f"Rows are cleaned for this run only: {error}.", highlight=False, soft_wrap=True
        ),
    )
    told = ", ".join(f"{number:,} {reason}" for reason, number in kept.counts.items())
    console.print(f"Cleaning keeps {len(kept):,} of {len(rows):,} rows{f': {told}' if told else ''}.", highlight=False)
    return kept


def _waits(console: Console, what: str) -> Callable[[], None]:
    return lambda: console.print(f"waiting for another process that {what} ...", highlight=False)


def _worth_it() -> bool:
    """Whether there is a folder to keep tokens in."""
    root = cache.folder()
    while not root.exists() and root != root.parent:
        root = root.parent
    return root.is_dir() and os.access(root, os.W_OK | os.X_OK)
