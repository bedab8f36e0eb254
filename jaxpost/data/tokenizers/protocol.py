# SPDX-License-Identifier: Apache-2.0
"""What the rest of jaxpost asks of a tokenizer, and the one tokenisation that gives both an example's tokens and its
loss mask."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from jaxpost.data.chat.template import Template
from jaxpost.data.parts import Part, Rendered, joined
from jaxpost.data.tokenizers.virtual import Virtual
from jaxpost.faults import Fault

TrainOn = Literal["completion", "all"]
Offsets = tuple[np.ndarray, np.ndarray]
BEFORE = "place the learned prompt before the text (delta.place 'before')"


class Tokenizer(Protocol):
    """Text to ids and back. Special and added tokens that the text writes out are recognised, as transformers
    recognises them; none is added."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos(self) -> int | None:
        """What is put before a text; None where transformers would put nothing."""
        ...

    @property
    def eos(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens with which a text or a turn ends: a sampler stops at them."""
        ...

    @property
    def template(self) -> Template: ...
    @property
    def virtual(self) -> Virtual:
        """Places that every example reserves (`with_virtual`); text that is encoded by itself knows none."""
        ...

    @property
    def continues(self) -> bool:
        """Whether text may be tokenised in pieces; not where white space at the end of one is dropped."""
        ...

    def encode(self, text: str) -> list[int]: ...
    def encode_offsets(self, text: str, after: str = "") -> Offsets:
        """Ids int32[n] and the half-open range of characters each stands for, int32[n, 2], never going back.

        A token may stand for no character of its own (a dummy prefix, the first bytes of a character that is spelt
        in bytes): an empty range where it is. `after` is what the text continues, if it is not the beginning.
        """
        ...

    def encode_offsets_batch(self, texts: Sequence[str], after: Sequence[str]) -> list[Offsets]:
        """`encode_offsets` of each, on all cores where the tokenizer can."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text, special tokens left out."""
        ...

    def piece(self, token: int) -> str:
        """The token as the vocabulary writes it, e.g. `</s>`."""
        ...

    def save(self, directory: str | Path) -> None: ...


class Tokens(NamedTuple):
    """An example as tokens: ids int32[n], and trained bool[n], whether the loss counts each of them as a target."""

    ids: np.ndarray
    trained: np.ndarray


def tokenise(
    tokenizer: Tokenizer, parts: Sequence[Part], train_on: TrainOn = "completion", where: str = "an example"
) -> Tokens:
    """The parts as one text, tokenised once, between bos (if the tokenizer has one) and eos.

    A token is trained if its last character lies in a trained part, so one that straddles the end of the prompt is
    the completion's; the eos if the last part is. `train_on="all"` trains every token. Text that already begins with
    the bos or ends with the eos, written out, gets no second one; what a model's own chat template wrote gets neither.
    No token reaches over the start of a part that `opens`, so that a prompt is the same tokens with what follows it as
    without. The tokenizer's reserved places are added to it, none of them trained.
    """
    return align(tokenizer, parts, train_on, where)[0]


def tokenise_batch(
    tokenizer: Tokenizer, examples: Sequence[Sequence[Part]], train_on: TrainOn, where: Sequence[str]
) -> list[Tokens]:
    """`tokenise` of each example, in one call of the tokenizer."""
    cuts = [_cuts(tokenizer, parts) for parts in examples]
    pieces = [_pieces(parts, span) for parts, span in zip(examples, cuts, strict=True)]
    texts, after = zip(*itertools.chain.from_iterable(pieces), strict=True) if pieces else ((), ())
    encoded = iter(tokenizer.encode_offsets_batch(texts, after) if texts else ())
    return [
        _aligned(tokenizer, parts, train_on, at, span, list(itertools.islice(encoded, len(some))))[0]
        for parts, at, span, some in zip(examples, where, cuts, pieces, strict=True)
    ]


def align(
    tokenizer: Tokenizer, parts: Sequence[Part], train_on: TrainOn = "completion", where: str = "an example"
) -> tuple[Tokens, np.ndarray]:
    """`tokenise`, and for every token its range of characters in the joined text, int32[n, 2]."""
    cuts = _cuts(tokenizer, parts)
    encoded = [tokenizer.encode_offsets(text, after) for text, after in _pieces(parts, cuts)]
    return _aligned(tokenizer, parts, train_on, where, cuts, encoded)


def _aligned(
    tokenizer: Tokenizer,
    parts: Sequence[Part],
    train_on: TrainOn,
    where: str,
    cuts: tuple[int, int, list[int]],
    encoded: Sequence[Offsets],
) -> tuple[Tokens, np.ndarray]:
    text, (start, stop, within) = joined(parts), cuts
    ids = [found for found, _ in encoded]
    spans = [span + at for (_, span), at in zip(encoded, [start, *within], strict=True)]
    bos = None if parts and parts[0].whole else tokenizer.bos
    if not (parts and parts[-1].whole):
        ids, spans = [*ids, [tokenizer.eos]], [*spans, [[stop, len(text)]]]
    if bos is not None:
        ids, spans = [[bos], *ids], [[[0, start]], *spans]
    ids, spans = np.concatenate(ids).astype(np.int32), np.concatenate(spans).astype(np.int32)
    part = _part_of_each(tokenizer, parts, spans)
    trained = np.ones(len(ids), bool) if train_on == "all" else np.array([part.trained for part in parts])[part]
    if bos is not None:
        trained[0] = False
    if not trained[1:].any():
        raise Fault(
            f"{where}: no token of it would be trained (the loss mask is all zeros); it needs a completion, "
            "or a message of the assistant"
        )
    if not tokenizer.virtual.count:
        return Tokens(ids, trained), spans
    at = max(_answer(parts, part, where), int(bos is not None)) if tokenizer.virtual.between else 0
    places = np.full((tokenizer.virtual.count, 2), spans[at, 0], np.int32)
    return _reserved(tokenizer, ids, trained, at), np.insert(spans, at, places, axis=0)


def _part_of_each(tokenizer: Tokenizer, parts: Sequence[Part], spans: np.ndarray) -> np.ndarray:
    """The part that each token belongs to, by the character that it ends on; a token without one goes with the
    character that follows it, and the eos, which none follows, with the last part."""
    ends_on = np.maximum(spans[:, 1] - 1, spans[:, 0])
    part_ends = np.cumsum([len(part.text) for part in parts])
    if not tokenizer.continues:  # white space that ends a prompt is dropped: with a completion, it is written by it
        opened = (i for i, part in enumerate(parts[1:]) if part.opens)
        for i in opened:
            part_ends[i] -= len(parts[i].text) - len(parts[i].text.rstrip())
    return np.searchsorted(part_ends, ends_on, side="right").clip(max=len(parts) - 1)


def _answer(parts: Sequence[Part], part: np.ndarray, where: str) -> int:
    """The first token of what answers a prompt."""
    opened = next((i for i, found in enumerate(parts) if found.opens), None)
    if opened is None:
        raise Fault(f"{where}: a text without a prompt has no place between prompt and answer; {BEFORE}")
    return int(np.argmax(part >= opened))


def _reserved(tokenizer: Tokenizer, ids: np.ndarray, trained: np.ndarray, at: int) -> Tokens:
    """With the tokenizer's places put in. What is trained stays the same: a text's first token has nothing written
    before it, and is no target behind a prompt either."""
    trained = np.insert(trained, at, np.zeros(tokenizer.virtual.count, bool))
    if not at:
        trained[tokenizer.virtual.count] = False
    return Tokens(np.insert(ids, at, tokenizer.virtual.ids), trained)


def reserve(tokenizer: Tokenizer, tokens: Tokens, where: str) -> Tokens:
    """Tokens from elsewhere with the tokenizer's places put in; an answer begins with the first trained token."""
    if not tokenizer.virtual.count:
        return tokens
    at = int(np.argmax(tokens.trained)) if tokenizer.virtual.between else 0
    if tokenizer.virtual.between and not at:
        raise Fault(f"{where}: tokens that are trained from the first have no place before an answer; {BEFORE}")
    return _reserved(tokenizer, tokens.ids, tokens.trained, at)


def _cuts(tokenizer: Tokenizer, parts: Sequence[Part]) -> tuple[int, int, list[int]]:
    """Where the text lies that is to be tokenised, without a bos and eos written out, and where it is cut."""
    text, start = joined(parts), 0
    stop = len(text)
    if tokenizer.bos is not None and not (parts and parts[0].whole):
        bos = tokenizer.piece(tokenizer.bos)
        start = len(bos) if text.startswith(bos) else 0
    if not (parts and parts[-1].whole):
        eos = tokenizer.piece(tokenizer.eos)
        stop -= len(eos) if text.endswith(eos) and len(text) >= start + len(eos) else 0
    if not tokenizer.continues:
        return start, stop, []
    within, at, last = [], 0, start
    for part in parts:
        if part.opens and last < at < stop:
            within.append(at)
            last = at
        at += len(part.text)
    return start, stop, within


def _pieces(parts: Sequence[Part], cuts: tuple[int, int, list[int]]) -> list[tuple[str, str]]:
    """The stretches of the text that are tokenised by themselves, each with what it continues."""
    text, (start, stop, within) = joined(parts), cuts
    return [(text[a:b], text[start:a]) for a, b in zip([start, *within], [*within, stop], strict=True)]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt as training shows it: behind the tokenizer's bos, if it has one and the prompt does not write it."""
    told = prompt if isinstance(prompt, Rendered) else Rendered(prompt)
    bos = [] if told.whole or tokenizer.bos is None else [tokenizer.bos]
    literal = tokenizer.piece(bos[0]) if bos else ""
    start = len(literal) if told.startswith(literal) else 0
    cuts = [cut for cut in told.cuts if start < cut < len(told)] if tokenizer.continues else []
    pieces = _pieces([Part(str(told), False)], (start, len(told), cuts))
    encoded = [tokenizer.encode_offsets(text, after) for text, after in pieces]
    ids = [*bos, *(int(i) for found, _ in encoded for i in found)]
    if not tokenizer.virtual.count:
        return ids
    at = _first_answer(tokenizer, told, encoded, cuts, start, len(bos)) if tokenizer.virtual.between else 0
    return [*ids[:at], *tokenizer.virtual.ids.tolist(), *ids[at:]]


def _first_answer(
    tokenizer: Tokenizer, told: Rendered, encoded: Sequence[Offsets], cuts: Sequence[int], start: int, before: int
) -> int:
    """The token of a prompt before which the assistant first speaks: in a first turn, the end of it."""
    cut = min(told.cuts, default=len(told))
    if cut >= len(told):
        return before + sum(len(ids) for ids, _ in encoded)
    spans = [span + at for (_, span), at in zip(encoded, [start, *cuts], strict=True)]
    parts = Part(told[:cut], False), Part(told[cut:], False, opens=True)
    return before + _answer(parts, _part_of_each(tokenizer, parts, np.concatenate(spans)), "the prompt")


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Every token must have a row in the model's embedding; the embedding may be larger (padded)."""
    if tokenizer.vocab_size > vocab_size:
        raise Fault(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model's embedding only {vocab_size} rows; "
            f"use the model's own tokenizer, or a model with vocab_size >= {tokenizer.vocab_size}"
        )


def check_ids(tokenizer: Tokenizer, tokens: Tokens, where: str) -> Tokens:
    """Tokens from a file, if the tokenizer knows all of them."""
    if (largest := tokens.ids.max(initial=0)) >= tokenizer.vocab_size:
        raise Fault(
            f"{where} of the token ids holds {largest}, and the tokenizer has only {tokenizer.vocab_size} pieces; "
            "make the ids again with this tokenizer"
        )
    if (smallest := tokens.ids.min(initial=0)) < 0:
        raise Fault(
            f"{where} of the token ids holds {smallest}; ids below zero are the places of a learned prompt, which a "
            "run puts in by itself"
        )
    return tokens
