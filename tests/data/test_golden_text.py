# SPDX-License-Identifier: Apache-2.0
"""Tokens, renderings and masks beside transformers' own (tests/golden, made by tools/golden/chat.py)."""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from jaxpost.data import tokenizers
from jaxpost.data.chat.jinja import Jinja
from jaxpost.data.parts import joined
from jaxpost.data.tokenizers import tokenise
from jaxpost.faults import Fault

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("gpt2", "llama3", "qwen", "llama2", "llama", "gemma", "phi3", "unigram")
RENDERED = json.loads((GOLDEN / "chat" / "rendered.json").read_text("utf-8"))
STYLES = RENDERED.pop("tokenizers")
TALKS = json.loads((GOLDEN / "chat" / "conversations.json").read_text("utf-8"))
SENTENCEPIECE = json.loads((GOLDEN / "tokenizers" / "sentencepiece.json").read_text("utf-8"))


@cache
def template(style: str) -> Jinja:
    named = tokenizers.load(GOLDEN / "tokenizers" / STYLES[style]).directory.named
    return Jinja((GOLDEN / "chat" / f"{style}.jinja").read_text("utf-8"), f"{style}.jinja", named)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_transformers(kind):
    golden = json.loads((GOLDEN / "tokenizers" / kind / "golden.json").read_text("utf-8"))
    tokenizer = tokenizers.load(GOLDEN / "tokenizers" / kind)
    assert (tokenizer.vocab_size, tokenizer.eos) == (golden["size"], golden["eos"])
    assert (tokenizer.bos is not None) == golden["bos"]
    assert len(golden["ids"]) > 15
    for text, ids in golden["ids"].items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.encode_offsets(text)[0].tolist() == ids
        assert tokenizer.decode(ids) == golden["decoded"][text], text


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_tokens_are_transformers(name, shared_data, tmp_path):
    """Of a model that its LlamaTokenizer reads as SentencePiece does, but for the merging of several spaces (their
    scores forbid it) and for the space put before a text that begins with one."""
    model, config = json.loads(name)
    shutil.copy(shared_data / "tokenizers" / f"{model}.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, golden = tokenizers.load(tmp_path), SENTENCEPIECE[name]
    assert (tokenizer.bos is not None) == golden["bos"]
    spaced = re.compile(r"  |^ |(</s>|\|>) ")
    texts = [text for text in golden["ids"] if not spaced.search(text)]
    assert len(texts) > 12
    for text in texts:
        assert tokenizer.encode(text) == golden["ids"][text], text
    assert tokenizer.template.name == "the built-in template" and len(tokenizer.ends) == 2


@pytest.mark.parametrize("name", RENDERED)
def test_renderings_are_transformers(name):
    style, talk, kind = name.split()
    talk, golden = TALKS[talk], RENDERED[name]
    if "refused" in golden:
        with pytest.raises(Fault, match=rf"{style}\.jinja refuses the conversation: \w+"):
            template(style).render(talk["messages"], talk.get("tools", ()), kind == "speak")
    else:
        found = template(style).render(talk["messages"], talk.get("tools", ()), kind == "speak")
        assert found.text == golden["text"]


@pytest.mark.parametrize("name", [name for name, golden in RENDERED.items() if "ids" in golden and "whole" in name])
def test_the_text_that_is_tuned_on_is_transformers(name, with_template):
    """Its tokens, too, except where one of theirs reaches over the start of an assistant's turn."""
    style, talk, _ = name.split()
    tokenizer, talk, golden = with_template(STYLES[style], style), TALKS[talk], RENDERED[name]
    if style == "features" or name in REFUSED:
        pytest.raises(Fault, tokenizer.template.parts, talk["messages"], talk.get("tools", ()))
        return
    parts = tokenizer.template.parts(talk["messages"], talk.get("tools", ()))
    assert joined(parts) == golden["text"]
    tokens = tokenise(tokenizer, parts)
    if tokens.ids.tolist() != golden["ids"]:
        assert name in CUT
        assert tokenizer.decode(tokens.ids) == tokenizer.decode(golden["ids"])
    elif "mask" in golden:
        assert tokens.trained.astype(int).tolist() == golden["mask"]


# No turn of the assistant; a turn before any prompt; messages or calls that the template has no words for.
REFUSED = {
    *(f"{style} asked whole" for style in STYLES),
    *(f"{style} disorder whole" for style in ("chatml", "llama3", "qwen3")),
    *(f"{style} tools whole" for style in ("chatml", "marked", "zephyr", "phi3")),
    "mistral system whole",
}
# A vocabulary with "\nW", and answers that begin with a newline.
CUT = {"gemma one whole", "zephyr one whole", "zephyr several whole", "chatml several whole"}
