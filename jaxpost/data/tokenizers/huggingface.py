# SPDX-License-Identifier: Apache-2.0
"""`tokenizer.json`: the file says everything about the vocabulary, and the tokenizers library reads it."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxpost.data.tokenizers.directory import Described, Directory
from jaxpost.data.tokenizers.protocol import Offsets
from jaxpost.faults import Fault

GUARDS = ("\n", "\t", "|", "0")  # what a text is put behind so that nothing is put before it


class JsonTokenizer(Described):
    """A `tokenizer.json`, with the special tokens that the config beside it names or adds."""

    def __init__(self, directory: Directory, file: str = "tokenizer.json"):
        content, place = directory.files[file], f"{directory.name}/{file}"
        try:
            # The library's errors do not say much, and some of them are not even exceptions of Python's own kinds.
            inner = tokenizers.Tokenizer.from_buffer(content)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise Fault(
                f"{place}: not a tokenizer of the tokenizers library, or cut short ({str(error)[:100]}, "
                f"{len(content)} bytes)"
            ) from None
        inner.no_truncation()
        inner.no_padding()
        _as_its_class(inner, directory)
        _add(inner, directory)
        self._inner = inner
        added = inner.get_added_tokens_decoder()
        specials = [token.content for token in added.values() if token.special]
        self._describe(directory, inner.token_to_id, directory.named, specials)
        self.eos = self._end()
        self.bos = _prefix(inner)
        self.pad = self._padding(self.bos)
        self.vocab_size = max(inner.get_vocab_size(with_added_tokens=True), 1 + max(added, default=0))
        self._stripping = {i: token.content for i, token in added.items() if token.rstrip and not token.lstrip}
        found = sorted(added.values(), key=lambda token: len(token.content), reverse=True)
        texts = "|".join(re.escape(token.content) + r"\s*" * token.rstrip for token in found)
        self._at_end = re.compile(rf"(?:{texts or '(?!)'})\Z")
        self._longest = max((len(token.content) for token in found), default=0) + 16
        self.continues = self.encode("a b ") != self.encode("a b")
        # Whether a text reads the same wherever it stands: nothing is put before the first word.
        self._even = self.encode("\nab") == [*self.encode("\n"), *self.encode("ab")] and self.encode(" ab") != (
            self.encode("ab")
        )

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_offsets(self, text: str, after: str = "") -> Offsets:
        if not after or self._even:
            return self._offsets(self._inner.encode(text, add_special_tokens=False), len(text))
        token = self._at_end.search(after[-self._longest :])
        for guard in [token.group()] if token else GUARDS:
            before = self.encode(guard)
            ids, spans = self._offsets(self._inner.encode(guard + text, add_special_tokens=False), len(guard + text))
            if ids[: len(before)].tolist() == before:
                return ids[len(before) :], np.maximum(spans[len(before) :] - len(guard), 0)
        return self._offsets(self._inner.encode(text, add_special_tokens=False), len(text))

    def encode_offsets_batch(self, texts: Sequence[str], after: Sequence[str]) -> list[Offsets]:
        if not self._even and any(after):
            return [self.encode_offsets(*piece) for piece in zip(texts, after, strict=True)]
        encoded = self._inner.encode_batch(list(texts), add_special_tokens=False)
        return [self._offsets(found, len(text)) for found, text in zip(encoded, texts, strict=True)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, token: int) -> str:
        return self._inner.id_to_token(int(token)) or ""

    def _offsets(self, encoded: Any, length: int) -> Offsets:
        """The library's ranges made to follow each other: it gives every byte of a character the whole of it, and
        some vocabularies leave the space before a word out."""
        ids = np.array(encoded.ids, np.int32)
        if not len(ids):
            return ids, np.zeros((0, 2), np.int32)
        spans = np.array(encoded.offsets, np.int32).reshape(-1, 2)
        starts, ends = spans[:, 0], spans[:, 1].copy()
        if self._stripping:  # a token that takes white space along ends where its own text does
            for i in np.flatnonzero(np.isin(ids, list(self._stripping))):
                ends[i] = min(ends[i], starts[i] + len(self._stripping[int(ids[i])]))
        if self.continues and int(ids[-1]) not in self._stripping:
            ends[-1] = length
        ends = np.minimum(ends, np.append(starts[1:], length))
        ends = np.minimum.accumulate(ends[::-1])[::-1]
        return ids, np.stack([np.append(0, ends[:-1]), ends], axis=1).astype(np.int32)


def _as_its_class(inner: tokenizers.Tokenizer, directory: Directory) -> None:
    """transformers 5 gives a LlamaTokenizer Llama's own treatment of spaces, whatever tokenizer.json says of it: one
    before a text, and before what follows a special token if the config says `legacy`."""
    config, model = directory.config, inner.model
    if str(config.get("tokenizer_class")).removesuffix("Fast") != "LlamaTokenizer":
        return
    if isinstance(model, tokenizers.models.BPE) and model.byte_fallback:
        scheme = "always" if config.get("legacy") else "first"
        inner.normalizer = None  # pyright: ignore[reportAttributeAccessIssue] (its setter takes None)
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
            prepend_scheme="never" if config.get("add_prefix_space") is False else scheme, split=False
        )


def _add(inner: tokenizers.Tokenizer, directory: Directory) -> None:
    """Adds the tokens that only the config knows, as transformers does: by their ids, then the named."""
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    for _, token in sorted(directory.added.items()):
        if token.text not in known:
            flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "normalized": token.normalized}
            inner.add_tokens([tokenizers.AddedToken(token.text, special=token.special, **flags)])
            known.add(token.text)
    names = [text for text in (*directory.named.values(), *directory.extra) if text not in known]
    inner.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in names])


def _prefix(inner: tokenizers.Tokenizer) -> int | None:
    """The token that the file's post-processor puts before a text."""
    bare, dressed = (inner.encode("a", add_special_tokens=add).ids for add in (False, True))
    if len(dressed) == len(bare) or dressed[: len(bare)] == bare:
        return None
    return dressed[0]
