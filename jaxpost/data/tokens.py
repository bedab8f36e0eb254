# SPDX-License-Identifier: Apache-2.0
"""Text that was tokenised once and is read again and again: a matrix of token ids on disk, one row a training row."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost.data.text import parts_of
from jaxpost.data.tokenizers import Tokenizer, Tokens, tokenise
from jaxpost.faults import Fault


class TokenRows(Sequence[Any]):
    """The rows of a `.npy` matrix of token ids, every token trained. The file is mapped, not read."""

    def __init__(self, path: str | Path):
        try:
            self._ids = np.load(path, mmap_mode="r")
        except FileNotFoundError as error:
            raise Fault(
                f"{path} does not exist; make it first (tools/nano_tokens.py does for the built-in text)"
            ) from error
        except ValueError as error:
            raise Fault(f"{path} is no matrix of token ids: {error}") from error
        if self._ids.ndim != 2 or not np.issubdtype(self._ids.dtype, np.integer):
            raise Fault(f"{path} holds {self._ids.dtype} of shape {self._ids.shape}, not a matrix of token ids")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Tokens:
        ids = np.asarray(self._ids[index], np.int32)
        return Tokens(ids, np.ones(len(ids), bool))


def blocks(rows: Iterable[Any], tokenizer: Tokenizer, width: int) -> np.ndarray:
    """Documents, each between its BOS and EOS, joined and cut into rows of `width` tokens, each of which begins with
    the last token of the one before (so that every token but the first is predicted once); the rest is left out."""
    pieces = [tokenise(tokenizer, parts_of(row, template=tokenizer.template), "all").ids for row in rows]
    stream = np.concatenate(pieces)
    count = max(0, (len(stream) - 1) // (width - 1))
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    starts = np.arange(count)[:, None] * (width - 1)
    return stream[starts + np.arange(width)].astype(dtype)
