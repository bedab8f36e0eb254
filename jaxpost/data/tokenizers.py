# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back, and the one tokenisation that gives both an example's tokens and its loss mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import sentencepiece

from jaxpost.data.text import Part
from jaxpost.faults import Fault

TrainOn = Literal["completion", "all"]


class Tokenizer(Protocol):
    """What the rest of jaxpost asks of a tokenizer. Neither `encode` adds or recognises special tokens."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int: ...
    @property
    def pad(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32[n] and the half-open range of characters each stands for, int32[n, 2], never going back.

        A token may stand for no character of its own (a dummy prefix, the first bytes of a character that is spelt
        in bytes): an empty range where it is.
        """
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...
    def piece(self, token: int) -> str:
        """The token as the vocabulary writes it, e.g. `</s>`."""
        ...

    def save(self, directory: str | Path) -> None: ...


class Tokens(NamedTuple):
    """An example as tokens: ids int32[n], and trained bool[n], whether the loss counts each of them as a target."""

    ids: np.ndarray
    trained: np.ndarray


class SentencePieceTokenizer:
    """A SentencePiece model, whatever its kind (unigram, BPE, with or without byte fallback)."""

    def __init__(self, proto: bytes, name: str = "tokenizer.model"):
        # SentencePiece takes an empty file for a model and prints a complaint at every later use.
        if not proto:
            raise Fault(f"{name}: the file is empty, not a SentencePiece model")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except RuntimeError:
            raise Fault(f"{name}: not a SentencePiece model, or cut short ({len(proto)} bytes)") from None
        if self._model.eos_id() < 0:
            raise Fault(f"{name}: the model has no end-of-text piece (eos); train it with eos_id >= 0")
        self.name = name
        self.vocab_size = self._model.vocab_size()
        self.bos = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.eos = self._model.eos_id()
        # Padding is told by segment 0, never by its id, so a model without a pad piece can use any piece but the eos,
        # whose meaning a reader of a batch must be able to trust.
        self.pad = next(i for i in (self._model.pad_id(), self._model.unk_id(), 0) if i >= 0)

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieceTokenizer":
        """From a `*.model` file, or a directory that holds `tokenizer.model`."""
        path = Path(path)
        file = path / "tokenizer.model" if path.is_dir() else path
        try:
            return cls(file.read_bytes(), str(file))
        except OSError as error:
            raise Fault(
                f"no tokenizer at {file} ({error.strerror}); expected a SentencePiece .model file or a "
                "directory that holds tokenizer.model"
            ) from None

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, return_type=int)

    def encode_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        found = self._model.encode(text, return_type="offset_mapping")
        return np.array(found["ids"], np.int32), np.array(found["offsets"], np.int32).reshape(-1, 2)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._model.decode([int(i) for i in ids])

    def piece(self, token: int) -> str:
        return self._model.id_to_piece(int(token))

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.model").write_bytes(self._model.serialized_model_proto())


def tokenise(
    tokenizer: Tokenizer, parts: Sequence[Part], train_on: TrainOn = "completion", where: str = "an example"
) -> Tokens:
    """The parts as one text, tokenised once, between bos (if the tokenizer has one) and eos.

    A token is trained if its last character lies in a trained part, so one that straddles the end of the prompt is
    the completion's; the eos if the last part is. `train_on="all"` trains every token. Text that already begins with
    the bos or ends with the eos, written out, gets no second one.
    """
    return align(tokenizer, parts, train_on, where)[0]


def align(
    tokenizer: Tokenizer, parts: Sequence[Part], train_on: TrainOn = "completion", where: str = "an example"
) -> tuple[Tokens, np.ndarray]:
    """`tokenise`, and for every token its range of characters in the joined text, int32[n, 2]."""
    text = "".join(part.text for part in parts)
    bos = "" if tokenizer.bos is None else tokenizer.piece(tokenizer.bos)
    eos = tokenizer.piece(tokenizer.eos)
    start = len(bos) if text.startswith(bos) else 0
    stop = len(text) - len(eos) if text.endswith(eos) and len(text) >= start + len(eos) else len(text)
    ids, spans = tokenizer.encode_offsets(text[start:stop])
    ids, spans = [ids, [tokenizer.eos]], [spans + start, [[stop, len(text)]]]
    if tokenizer.bos is not None:
        ids, spans = [[tokenizer.bos], *ids], [[[0, start]], *spans]
    ids, spans = np.concatenate(ids).astype(np.int32), np.concatenate(spans).astype(np.int32)

    if train_on == "all":
        trained = np.ones(len(ids), bool)
    else:
        # The character a token ends on; a token without one goes with the character that follows it, and the eos,
        # which none follows, with the last part.
        ends_on = np.maximum(spans[:, 1] - 1, spans[:, 0])
        part_ends = np.cumsum([len(part.text) for part in parts])
        part = np.searchsorted(part_ends, ends_on, side="right").clip(max=len(parts) - 1)
        trained = np.array([part.trained for part in parts])[part]
    if tokenizer.bos is not None:
        trained[0] = False
    if not trained[1:].any():
        raise Fault(
            f"{where}: no token of it would be trained (the loss mask is all zeros); it needs a completion, "
            "or a message of the assistant"
        )
    return Tokens(ids, trained), spans


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
    return tokens
