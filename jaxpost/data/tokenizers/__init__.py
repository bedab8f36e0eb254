# SPDX-License-Identifier: Apache-2.0
"""Text to tokens and back. `load` reads a tokenizer of any kind."""

from pathlib import Path

from jaxpost.data.chat.template import Chat
from jaxpost.data.tokenizers import tiktokens
from jaxpost.data.tokenizers.directory import Directory
from jaxpost.data.tokenizers.huggingface import JsonTokenizer
from jaxpost.data.tokenizers.protocol import (
    Tokenizer,
    Tokens,
    TrainOn,
    align,
    check_ids,
    check_vocabulary,
    prompt_ids,
    reserve,
    tokenise,
    tokenise_batch,
)
from jaxpost.data.tokenizers.sentencepieces import SentencePieceTokenizer
from jaxpost.data.tokenizers.tiktokens import TiktokenTokenizer
from jaxpost.data.tokenizers.virtual import Virtual, newest, with_virtual
from jaxpost.faults import Fault

__all__ = [
    "Chat",
    "JsonTokenizer",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "Tokens",
    "TrainOn",
    "Virtual",
    "align",
    "check_ids",
    "check_vocabulary",
    "load",
    "newest",
    "prompt_ids",
    "reserve",
    "tokenise",
    "tokenise_batch",
    "with_virtual",
]

CHAT = Chat()
FILES = "tokenizer.json, tokenizer.model, spiece.model or *.tiktoken"


def load(path: str | Path, chat: Chat = CHAT) -> Tokenizer:
    """From a directory, of whose files tokenizer.json comes first, as in transformers; or from one file. `chat` says
    what is to be otherwise than its chat template says."""
    path = Path(path)
    directory, file = _in_directory(path) if path.is_dir() else _from_file(path)
    if chat.template:
        directory = directory.with_template(chat.template)
    content = directory.files[file]
    if file.endswith(".json"):
        made = JsonTokenizer(directory, file)
    elif file.endswith(".tiktoken") or tiktokens.looks_like(content):
        made = TiktokenTokenizer(directory, file)
    else:
        made = SentencePieceTokenizer(content, str(path if path.is_file() else path / file), directory)
    made.configure(chat)
    return made


def _in_directory(path: Path) -> tuple[Directory, str]:
    directory = Directory.read(path)
    tiktoken = sorted(name for name in directory.files if name.endswith(".tiktoken"))
    kinds = ("tokenizer.json", "tokenizer.model", "spiece.model", *tiktoken)
    file = next((name for name in kinds if name in directory.files), None)
    if file is None:
        beside = " (vocab.json and merges.txt alone do not say enough)" if "merges.txt" in directory.files else ""
        raise Fault(f"no tokenizer at {path}; expected a directory that holds {FILES}{beside}")
    return directory, file


def _from_file(path: Path) -> tuple[Directory, str]:
    """A file alone; a JSON file with what stands beside it, which says the names of its special tokens."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Fault(
            f"no tokenizer at {path} ({error.strerror}); expected {FILES}, or a directory that holds one"
        ) from None
    around = Directory.read(path.parent).files if path.suffix == ".json" else {}
    kept = {path.name: content} if path.suffix in (".json", ".tiktoken") else {"tokenizer.model": content}
    return Directory(str(path.parent), {**around, **kept}), next(iter(kept))
