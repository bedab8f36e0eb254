# SPDX-License-Identifier: Apache-2.0
"""Rendered examples with the trained tokens marked, to see what a run will learn before it runs."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich.text import Text

from jaxpost.data.batches.order import Order
from jaxpost.data.parts import Part, joined
from jaxpost.data.text import parts_of, place
from jaxpost.data.tokenizers import Tokenizer, TrainOn, align

OPEN, CLOSE = "⟦", "⟧"  # around what is trained: seen without colour, too, and rare in text


def show(
    rows: Sequence[Any],
    tokenizer: Tokenizer,
    count: int = 3,
    seed: int | None = 0,
    train_on: TrainOn = "completion",
    columns: Mapping[str, str] | None = None,
    seq_len: int | None = None,
) -> Iterator[Text]:
    """The first `count` rows in the order a loader of the same seed reads them, each under a line that says where it
    is from and how many of its tokens are trained. What a row of `seq_len` cannot hold is struck through; the places of
    a learned prompt are a mark."""
    order = Order(len(rows), seed)
    for n in range(min(count, len(rows))):
        row = rows[order(n)[1]]
        yield _shown(place(row), parts_of(row, columns, tokenizer.template), tokenizer, train_on, seq_len)


def _shown(name: str, parts: tuple[Part, ...], tokenizer: Tokenizer, train_on: TrainOn, seq_len: int | None) -> Text:
    tokens, spans = align(tokenizer, parts, train_on, name)
    limit = len(tokens.ids) if seq_len is None else seq_len + 1
    kept = tokens.trained[:limit]
    places = tokenizer.virtual.count
    learned = f" and {places} places of the learned prompt" if places else ""
    shown = Text(f"{name} · {len(kept) - places} tokens{learned}, {int(kept.sum())} trained", style="bold")
    if len(kept) < len(tokens.ids):
        shown.append(f", {len(tokens.ids) - len(kept)} cut off", style="red")
    shown.append("\n")
    text = joined(parts)
    at = 0
    states = [(bool(trained), i >= limit, bool(tokens.ids[i] < 0)) for i, trained in enumerate(tokens.trained)]
    for (trained, cut, reserved), run in groupby(range(len(states)), key=states.__getitem__):
        indices = list(run)
        if reserved:
            shown.append(marker(tokenizer), style="strike dim" if cut else "bold magenta")
            continue
        written, at = _written(tokenizer, text, tokens.ids, spans, indices, at), int(spans[indices[-1], 1])
        marked = trained and not cut
        shown.append(OPEN if marked else "", style="green")
        shown.append(written, style="strike dim" if cut else "bold green" if marked else "")
        shown.append(CLOSE if marked else "", style="green")
    return shown


def marker(tokenizer: Tokenizer) -> str:
    """What stands for the places of a learned prompt."""
    return f"⟨prompt {tokenizer.virtual.count}⟩" if tokenizer.virtual.count else ""


def _written(tokenizer: Tokenizer, text: str, ids: Any, spans: Any, indices: list[int], at: int) -> str:
    """The characters from `at` to where these tokens end, and the bos and eos among them that text does not hold."""
    first, last = indices[0], indices[-1]
    body = text[at : int(spans[last, 1])]
    begins = int(np.argmax(ids >= 0))
    if first == begins and ids[begins] == tokenizer.bos and not spans[begins, 1]:
        body = tokenizer.piece(int(ids[begins])) + body
    if last == len(ids) - 1 and ids[-1] == tokenizer.eos and spans[-1, 0] == spans[-1, 1]:
        body += tokenizer.piece(int(ids[-1]))
    return body
