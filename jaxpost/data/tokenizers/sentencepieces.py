# SPDX-License-Identifier: Apache-2.0
"""SentencePiece models (`tokenizer.model`, `spiece.model`), read by SentencePiece itself."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from jaxpost.data.tokenizers.directory import Added, Described, Directory, either
from jaxpost.data.tokenizers.protocol import Offsets
from jaxpost.faults import Fault

# Put behind a serialised model it overrides one field: normalizer_spec (3) { add_dummy_prefix (3): false }.
NO_PREFIX = b"\x1a\x02\x18\x00"
NONE = np.zeros(0, np.int32), np.zeros((0, 2), np.int32)


class SentencePieceTokenizer(Described):
    """A SentencePiece model, whatever its kind (unigram, BPE, with or without byte fallback), and the tokens that its
    directory adds. Its control pieces (`<s>`) are recognised in text, as transformers does.

    Text behind such a token reads on without the space that SentencePiece puts before a text, unless the
    tokenizer_config.json says `legacy`, as transformers takes it. A model by itself puts its bos before a text; one
    with a tokenizer_config.json does if that says `add_bos_token`.
    """

    def __init__(self, proto: bytes, name: str = "tokenizer.model", directory: Directory | None = None):
        # SentencePiece takes an empty file for a model and prints a complaint at every later use.
        if not proto:
            raise Fault(f"{name}: the file is empty, not a SentencePiece model")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
            self._inner = sentencepiece.SentencePieceProcessor(model_proto=proto + NO_PREFIX)
        except RuntimeError:
            raise Fault(f"{name}: not a SentencePiece model, or cut short ({len(proto)} bytes)") from None
        directory = directory or Directory(name, {"tokenizer.model": proto})
        model, pieces = self._model, self._model.vocab_size()
        self._added = {token.text: i for i, token in directory.added.items()}
        ids = {name: getattr(model, f"{name}_id")() for name in ("bos", "eos", "unk", "pad")}
        known = {f"{name}_token": model.id_to_piece(i) for name, i in ids.items() if i >= 0}
        named = known | {
            name: text for name, text in directory.named.items() if name == "eos_token" or self._id(text) is not None
        }
        if ids["eos"] < 0 and "eos_token" not in directory.named:
            raise Fault(f"{name}: the model has no end-of-text piece (eos); train it with eos_id >= 0")
        control = (i for i in range(pieces) if model.is_control(i) or model.is_unknown(i))
        found = {model.id_to_piece(i): i for i in control} | self._added
        found |= {text: i for text in (*named.values(), *directory.extra) if (i := self._id(text)) is not None}
        flags = {token.text: token for token in directory.added.values()}
        self._added, self._flags = found, {text: flags.get(text, Added(text)) for text in found}
        self._texts = {i: text for text, i in found.items()}
        self._either = either(self._flags)
        specials = [text for text, token in self._flags.items() if token.special]
        self._describe(directory, self._id, named, specials)
        config = directory.config
        self.vocab_size = max(pieces, 1 + max(found.values(), default=0))
        self.eos = self._end(ids["eos"])
        wanted = config.get("add_bos_token", not config)
        self.bos = self._id(named["bos_token"]) if wanted and "bos_token" in named else None
        self.pad = self._padding()
        self._everywhere = bool(config.get("legacy"))
        if not config.get("add_prefix_space", True):
            self._model = self._inner
        self.continues = model.encode("a b ") != model.encode("a b")

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieceTokenizer":
        """From a `*.model` file, or a directory that holds `tokenizer.model` or `spiece.model`."""
        path = Path(path)
        names = ("tokenizer.model", "spiece.model") if path.is_dir() else ("",)
        file = next((path / name for name in names if (path / name).is_file()), path / names[0])
        try:
            proto = file.read_bytes()
        except OSError as error:
            raise Fault(
                f"no tokenizer at {file} ({error.strerror}); expected a SentencePiece .model file or a "
                "directory that holds tokenizer.model"
            ) from None
        return cls(proto, str(file), Directory.read(path) if path.is_dir() else None)

    def encode(self, text: str) -> list[int]:
        if self._either.search(text) is None:
            return self._model.encode(text, return_type=int)
        return self.encode_offsets(text)[0].tolist()

    def encode_offsets(self, text: str, after: str = "") -> Offsets:
        found = [
            (np.array([token], np.int32), np.array([[a, b]], np.int32))
            if token >= 0
            else self._plain(text, a, b, after)
            for token, a, b in self._stretches(text)
        ]
        if len(found) == 1:
            return found[0]
        ids, spans = zip(*found, strict=True) if found else ((), ())
        return (np.concatenate(ids), np.concatenate(spans)) if found else NONE

    def encode_offsets_batch(self, texts: Sequence[str], after: Sequence[str]) -> list[Offsets]:
        return [self.encode_offsets(*piece) for piece in zip(texts, after, strict=True)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        out, run, model = [], [], self._model
        for i in map(int, ids):
            if i not in self._texts or self._model.is_unknown(min(i, self._model.vocab_size() - 1)):
                run.append(i)
                continue
            out.append(model.decode(run) if run else "")
            text = self._texts[i]
            out.append("" if self._flags[text].special else text)
            run, model = [], (model if self._everywhere or not (run or out[-1]) else self._inner)
        return "".join([*out, model.decode(run) if run else ""])

    def piece(self, token: int) -> str:
        token = int(token)
        return self._texts.get(token) or (self._model.id_to_piece(token) if token < self._model.vocab_size() else "")

    def _id(self, text: str) -> int | None:
        if text in self._added:
            return self._added[text]
        found = self._model.piece_to_id(text)
        return found if self._model.id_to_piece(found) == text else None

    def _stretches(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Token, start and end of every recognised token; -1, start and end of the text between them."""
        at = 0
        for found in self._either.finditer(text):
            if found.start() > at:
                yield -1, at, found.start()
            token = self._added[found.group().strip() if found.group() not in self._added else found.group()]
            # A token that takes white space along ends where its own text does, as far as training goes.
            yield token, at if found.start() == at else found.start(), found.end()
            at = found.end()
        if at < len(text):
            yield -1, at, len(text)

    def _plain(self, text: str, start: int, end: int, after: str) -> Offsets:
        first = start == 0 and not after
        special = start > 0 or bool(after and self._ends_in_token(after))
        model = self._model if first or (special and self._everywhere) else self._inner
        found = model.encode(text[start:end], return_type="offset_mapping")
        ids, spans = np.array(found["ids"], np.int32), np.array(found["offsets"], np.int32).reshape(-1, 2)
        return ids, spans + np.int32(start)

    def _ends_in_token(self, text: str) -> bool:
        return any(text.endswith(token) for token in self._added)
