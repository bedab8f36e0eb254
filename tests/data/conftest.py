# SPDX-License-Identifier: Apache-2.0
"""Tokenizers small enough to be trained on the spot."""

import io
import shutil
from pathlib import Path

import pytest
import sentencepiece

from jaxpost.data import tokenizers
from jaxpost.data.tokenizers import JsonTokenizer, SentencePieceTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"

CORPUS = [
    "The cat sat on the mat and looked at the dog.",
    "How many apples does Anna have? She has 3 + 4 = 7 apples.",
    "User:\nWhat is the colour of the sky?\nAssistant:\nThe sky is blue.",
    "Is that a good film? Yes, it was a very good film, and I would see it again.",
    "Words: one two three four five six seven eight nine ten eleven twelve",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Where does the river run? It runs through the green valley to the sea.",
]


def _train(**options) -> SentencePieceTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    return SentencePieceTokenizer(model.getvalue())


@pytest.fixture(scope="session")
def tokenizer() -> SentencePieceTokenizer:
    """As Llama's and Mistral's: BPE with byte fallback that keeps every character; bos 1, eos 2, no pad."""
    return _train(
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
    )


@pytest.fixture(scope="session")
def folding() -> SentencePieceTokenizer:
    """As T5's: unigram, folds compatibility characters and white space; no bos, eos 1, pad 0, unk 2."""
    return _train(model_type="unigram", vocab_size=120, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False)


@pytest.fixture
def with_template(tmp_path: Path):
    """A small tokenizer of some kind whose model has the template of some style (or a template given as text)."""

    def make(kind: str, style: str = "", source: str = "") -> JsonTokenizer:
        place = tmp_path / f"{kind}-{style}"
        shutil.copytree(GOLDEN / "tokenizers" / kind, place, dirs_exist_ok=True)
        text = source or (GOLDEN / "chat" / f"{style}.jinja").read_text("utf-8")
        (place / "chat_template.jinja").write_text(text, "utf-8")
        made = tokenizers.load(place)
        assert isinstance(made, JsonTokenizer)
        return made

    return make


@pytest.fixture
def qwen(with_template) -> JsonTokenizer:
    """As Qwen's: bytes, no bos, ChatML."""
    return with_template("qwen", "chatml")


@pytest.fixture
def written(tmp_path: Path):
    """Writes a file and gives its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
