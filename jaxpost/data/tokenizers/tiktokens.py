# SPDX-License-Identifier: Apache-2.0
"""tiktoken's files: one token a line, in base64, with its rank. They say neither how text is split before it is
tokenised nor which special tokens there are: both belong to the model family that the file is from."""

import base64
import binascii
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxpost.data.tokenizers.directory import Described, Directory
from jaxpost.data.tokenizers.protocol import Offsets
from jaxpost.faults import Fault

_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_RESERVED = "<|reserved_special_token_{}|>"


@dataclass(frozen=True)
class Family:
    """How a family splits text, and its special tokens, which follow the ranks in this order."""

    pattern: str
    specials: tuple[str, ...]
    bos: str
    eos: str


# Llama 3: meta-llama/llama3, llama/tokenizer.py. Qwen: QwenLM/Qwen, tokenization_qwen.py. cl100k_base: openai/tiktoken,
# tiktoken_ext/openai_public.py (its special tokens leave gaps and need a tokenizer_config.json).
FAMILIES = {
    "llama3": Family(
        _WORDS + r"\p{N}{1,3}" + _REST,
        (
            *("<|begin_of_text|>", "<|end_of_text|>", *(_RESERVED.format(i) for i in range(4))),
            *("<|start_header_id|>", "<|end_header_id|>", _RESERVED.format(4), "<|eot_id|>"),
            *(_RESERVED.format(i) for i in range(5, 251)),
        ),
        "<|begin_of_text|>",
        "<|end_of_text|>",
    ),
    "qwen": Family(
        _WORDS + r"\p{N}" + _REST,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
        "",
        "<|endoftext|>",
    ),
    "cl100k": Family(_WORDS + r"\p{N}{1,3}" + _REST, ("<|endoftext|>",), "", "<|endoftext|>"),
}
KNOWN_AS = {"qwen": "qwen", "llama-3": "llama3", "llama3": "llama3", "llama_3": "llama3", "cl100k": "cl100k"}
LLAMA3_RANKS = 128_000


class TiktokenTokenizer(Described):
    """A tiktoken file of a known family, with the special tokens of the config beside it if there is one."""

    continues = True

    def __init__(self, directory: Directory, file: str):
        place = f"{directory.name}/{file}"
        ranks = _ranks(directory.files[file], place)
        family = FAMILIES[_family(directory, file, len(ranks))]
        try:
            tiktoken = importlib.import_module("tiktoken")
        except ImportError:
            raise Fault(f"{place}: reading tiktoken's files needs tiktoken: pip install 'jaxpost[hf]'") from None
        added = {token.text: i for i, token in directory.added.items()}
        special = added or {text: len(ranks) + i for i, text in enumerate(family.specials)}
        self._encoding = tiktoken.Encoding(place, pat_str=family.pattern, mergeable_ranks=ranks, special_tokens=special)
        own = {"bos_token": family.bos, "eos_token": family.eos}
        named = {name: text for name, text in own.items() if text in special} | directory.named
        self._special = special
        self._texts = {i: text for text, i in special.items()}
        kept = {token.text for token in directory.added.values() if not token.special}
        self._silent = {i for text, i in special.items() if text not in kept}
        self._describe(directory, special.get, named, [text for text in special if text not in kept])
        self.vocab_size = self._encoding.n_vocab
        self.eos = self._end()
        wanted = directory.config.get("add_bos_token", bool(family.bos))
        self.bos = special.get(named.get("bos_token", "")) if wanted else None
        self.pad = self._padding(self.bos)
        sizes = {i: len(text.encode()) for text, i in special.items()} | {i: len(token) for token, i in ranks.items()}
        self._sizes = np.zeros(self.vocab_size, np.int64)
        self._sizes[list(sizes)] = list(sizes.values())

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode(text, allowed_special="all")

    def encode_offsets(self, text: str, after: str = "") -> Offsets:
        return self._offsets(text, self.encode(text))

    def encode_offsets_batch(self, texts: Sequence[str], after: Sequence[str]) -> list[Offsets]:
        encoded = self._encoding.encode_batch(list(texts), num_threads=2, allowed_special="all")
        return [self._offsets(text, ids) for text, ids in zip(texts, encoded, strict=True)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._encoding.decode([i for i in map(int, ids) if i not in self._silent])

    def piece(self, token: int) -> str:
        return self._texts.get(int(token)) or self._encoding.decode_single_token_bytes(int(token)).decode("latin-1")

    def _offsets(self, text: str, ids: Sequence[int]) -> Offsets:
        """The tokens' bytes follow each other; a character belongs to the token that has its last byte."""
        found = np.array(ids, np.int32)
        ends = np.cumsum(self._sizes[found]) if len(found) else np.zeros(0, np.int64)
        if not text.isascii():
            begins = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
            whole = np.append(np.cumsum(begins), len(text))  # characters begun by a byte, itself included
            ends = whole[np.minimum(ends, len(begins))] - (ends < len(begins)) * 1
        return found, np.stack([np.append(0, ends[:-1])[: len(ends)], ends], axis=1).astype(np.int32)


def looks_like(content: bytes) -> bool:
    """Whether a file's first line is base64 and a rank: such files are called tokenizer.model, too."""
    first = content[:400].split(b"\n")[0].split()
    if len(first) != 2 or not first[1].isdigit():
        return False
    try:
        return bool(base64.b64decode(first[0], validate=True))
    except (binascii.Error, ValueError):
        return False


def _ranks(content: bytes, place: str) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise Fault(
                f"{place}:{number}: not a token in base64 and its rank; the file is damaged or cut short"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise Fault(f"{place}: {len(ranks)} tokens whose ranks are not 0, 1, 2, ...; the file is cut short")
    return ranks


def _family(directory: Directory, file: str, ranks: int) -> str:
    """The family that a file's name, its config's class or its directory says, or Llama 3's number of ranks."""
    config = directory.config
    said = [Path(file).stem, str(config.get("tokenizer_class", "")), Path(directory.name).name]
    for text in said:
        for name, family in KNOWN_AS.items():
            if name in text.lower():
                return family
    if ranks == LLAMA3_RANKS:
        return "llama3"
    raise Fault(
        f"{directory.name}/{file}: a tiktoken file does not say how it splits text, and neither its name nor "
        f"tokenizer_config.json names a known family ({', '.join(sorted(FAMILIES))}); convert it to tokenizer.json"
    )
