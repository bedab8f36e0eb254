# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of every kind of file: loaded, saved, refused, and the laws that hold for all of them."""

import base64
import builtins
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data import tokenizers
from jaxpost.data.text import as_prompt, parts_of
from jaxpost.data.tokenizers import Chat, JsonTokenizer, SentencePieceTokenizer, prompt_ids, tokenise, tokenise_batch
from jaxpost.data.tokenizers.directory import Directory
from jaxpost.faults import Fault

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers"
KINDS = ("gpt2", "llama3", "qwen", "llama2", "llama", "gemma", "phi3", "unigram")
LOADED = {kind: tokenizers.load(GOLDEN / kind) for kind in KINDS}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text("ab  \n.漢é🙂½ﬁ<|>", max_size=30)
WORDS = st.text("ab \n.漢é\t'3", max_size=10)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(TEXTS)
def test_offsets_follow_each_other(kind, text):
    tokenizer = LOADED[kind]
    ids, spans = tokenizer.encode_offsets(text)
    assert ids.tolist() == tokenizer.encode(text) and ids.dtype == spans.dtype == np.int32
    assert (np.diff(spans.ravel()) >= 0).all() and spans.max(initial=0) <= len(text)
    if kind != "unigram" and "<|" not in text:  # white space behind <|end|> belongs to no token
        assert "".join(text[a:b] for a, b in spans) == text


def test_a_character_spelt_in_bytes_belongs_to_the_last_of_them():
    for kind in ("gpt2", "llama2"):
        _, spans = LOADED[kind].encode_offsets("漢漢")
        assert spans[-1].tolist() == [1, 2] and spans.tolist().count([1, 2]) == 1 and spans.tolist().count([0, 1]) == 1


@pytest.mark.parametrize("kind", [*KINDS, "sentencepiece", "folding"])
@settings(max_examples=25)
@given(prompt=WORDS, completion=WORDS.filter(str.strip))
def test_a_prompt_is_the_same_tokens_with_its_completion_as_without(kind, prompt, completion, tokenizer, folding):
    used = LOADED.get(kind) or {"sentencepiece": tokenizer, "folding": folding}[kind]
    prompt = as_prompt(prompt, completion)
    ids = prompt_ids(used, prompt)
    tokens = tokenise(used, parts_of({"prompt": prompt, "completion": completion}))
    assert tokens.ids[: len(ids)].tolist() == ids
    assert not tokens.trained[: len(ids)].any() and tokens.ids[-1] == used.eos and tokens.trained[-1]
    assert tokens.trained[len(ids) :].all()


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_are_the_same(kind, with_template):
    own = with_template(kind, "chatml")
    rows = [{"text": "The cat"}, {"prompt": "a", "completion": " b\n"}, {"text": "<s>The 漢</s>"}] + [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho " * n}]} for n in (1, 3)
    ]
    parts = [parts_of(row, None, own.template) for row in rows]
    for one, other in zip(tokenise_batch(own, parts, "completion", ["x"] * 5), parts, strict=True):
        alone = tokenise(own, other)
        assert one.ids.tolist() == alone.ids.tolist() and one.trained.tolist() == alone.trained.tolist()


def test_what_continues_a_text_gets_no_space_before_it(tokenizer):
    for used in (LOADED["llama2"], tokenizer):
        whole = used.encode("The\ncat")
        ids, spans = used.encode_offsets("cat", after="The\n")
        assert [*used.encode("The\n"), *ids] == whole and spans[0, 0] == 0 and spans[-1, 1] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same_byte_for_byte(kind, with_template, tmp_path):
    own = with_template(kind, "chatml")
    (tmp_path / f"{kind}-chatml" / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    own = tokenizers.load(tmp_path / f"{kind}-chatml")
    own.save(tmp_path / "saved")
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    assert {file.name for file in (tmp_path / "saved").iterdir()} == names
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / f"{kind}-chatml" / name).read_bytes()
    again = tokenizers.load(tmp_path / "saved")
    assert (again.ends, again.bos, again.eos, again.pad) == (own.ends, own.bos, own.eos, own.pad)
    assert {1, 5, own.eos} <= set(own.ends)


def test_what_ends_a_turn():
    def ends(kind):
        return {LOADED[kind].piece(i) for i in LOADED[kind].ends}

    assert ends("gpt2") == {"<|endoftext|>"} and ends("qwen") == {"<|im_end|>"}
    assert ends("llama3") == {"<|eot_id|>"} and ends("gemma") == {"<eos>", "<end_of_turn>"}
    assert ends("phi3") == {"<|endoftext|>", "<|end|>"}


def test_the_end_of_turn_of_a_template_ends_a_turn(with_template):
    own = with_template("gpt2", source="{% for m in messages %}{{ m.content ~ '<|endoftext|>' }}{% endfor %}")
    assert own.template.turns.stop == "<|endoftext|>"


def test_the_pad_is_never_the_eos():
    for tokenizer in LOADED.values():
        assert tokenizer.pad != tokenizer.eos and 0 <= tokenizer.pad < tokenizer.vocab_size


def test_a_token_that_takes_white_space_along_is_trained_with_its_turn(with_template):
    own = with_template("phi3", "phi3")
    turns = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(4)]
    tokens = tokenise(own, own.template.parts(turns))
    assert [own.piece(i) for i in tokens.ids[tokens.trained].tolist()] == ["▁a", "<|end|>"] * 2


def write(place: Path, **files) -> Path:
    place.mkdir(exist_ok=True)
    for name, content in files.items():
        (place / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return place


def test_tokens_that_only_the_config_knows(tmp_path):
    shutil.copy(GOLDEN / "qwen" / "tokenizer.json", tmp_path)
    token = {"content": "<|new|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    config = {"eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": {"425": token}, "pad_token": "<|pad|>"}
    write(tmp_path, tokenizer_config__json=config | {"additional_special_tokens": ["<|more|>"]})
    made = tokenizers.load(tmp_path)
    assert made.encode("a<|new|><|pad|><|more|>")[1:] == [425, 426, 427] and made.vocab_size == 428
    assert made.pad == 426 and made.decode([425, *made.encode("ab")]) == "ab"


def test_a_sentencepiece_model_with_added_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    size = tokenizer.vocab_size
    write(tmp_path, added_tokens__json={"<|im_end|>": size, "<think>": size + 1}, tokenizer_config__json={
        "add_bos_token": False, "eos_token": "<|im_end|>", "bos_token": "<s>"})  # fmt: skip
    made = tokenizers.load(tmp_path)
    assert (made.bos, made.eos, made.vocab_size) == (None, size, size + 2) and made.ends == (size,)
    ids, spans = made.encode_offsets("The<|im_end|><think>cat 漢")
    assert ids.tolist()[1:3] == [size, size + 1] and spans[1:3].tolist() == [[3, 13], [13, 20]]
    assert made.decode(ids) == "The<think>cat 漢" and spans[-1].tolist() == [24, 25]
    made.save(tmp_path / "again")
    assert tokenizers.load(tmp_path / "again").encode("The<think>") == made.encode("The<think>")


def test_spiece_and_a_file_alone(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").rename(tmp_path / "spiece.model")
    for path in (tmp_path, tmp_path / "spiece.model"):
        assert tokenizers.load(path).encode("The cat") == tokenizer.encode("The cat")
        assert isinstance(tokenizers.load(path), SentencePieceTokenizer)
    assert isinstance(tokenizers.load(GOLDEN / "qwen" / "tokenizer.json"), JsonTokenizer)


def test_files_that_are_no_tokenizer(tmp_path, tokenizer):
    with pytest.raises(
        Fault, match=r"no tokenizer at .*; expected a directory that holds tokenizer.json, tokenizer.mo"
    ):
        tokenizers.load(tmp_path)
    write(tmp_path, merges__txt="a b")
    with pytest.raises(Fault, match=r"merges.txt alone do not say enough"):
        tokenizers.load(tmp_path)
    with pytest.raises(Fault, match=r"no tokenizer at .*nowhere \(No such file"):
        tokenizers.load(tmp_path / "nowhere")
    whole = (GOLDEN / "qwen" / "tokenizer.json").read_text("utf-8")
    for text in ("", "{}", "[]", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), whole[: len(whole) // 2]):
        with pytest.raises(Fault, match=r"tokenizer.json: not a tokenizer of the tokenizers library, or cut short"):
            tokenizers.load(write(tmp_path, tokenizer__json=text))
    write(tmp_path, tokenizer__json=whole)
    with pytest.raises(
        Fault, match="nothing says with which token a text ends; name it as eos_token in a tokenizer_conf"
    ):
        tokenizers.load(tmp_path)
    with pytest.raises(Fault, match="its eos_token '<nothing>' is not in the vocabulary"):
        tokenizer.save(tmp_path / "spm")
        tokenizers.load(write(tmp_path / "spm", tokenizer_config__json={"eos_token": "<nothing>"}))
    for name in ("tokenizer_config", "generation_config"):
        good = write(tmp_path, tokenizer_config__json={"eos_token": "<|im_end|>"}, generation_config__json={})
        with pytest.raises(Fault, match=rf"{name}.json: not JSON, or cut short"):
            _ = tokenizers.load(write(good, **{f"{name}__json": '{"eos_token": "<|im'})).ends
    with pytest.raises(Fault, match="tokenizer_config.json: must be a JSON object, not list"):
        tokenizers.load(write(tmp_path, tokenizer_config__json=[]))
    with pytest.raises(Fault, match="added_tokens_decoder must map ids to objects"):
        tokenizers.load(write(tmp_path, tokenizer_config__json={"added_tokens_decoder": {"x": "y"}}))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"chat_template": "{% if %}"}, r"tokenizer_config.json: line 1 is not Jinja"),
        ({"chat_template": [{"name": "rag", "template": "x"}]}, r"chat templates \(rag\) none is named 'default'"),
        ({"chat_template": 7}, "chat_template must be a string, or a list of objects"),
        ({"chat_template": [{"name": "default"}]}, "chat_template must be a string, or a list of objects"),
    ],
)
def test_templates_that_cannot_be_used(given, says, tmp_path):
    shutil.copy(GOLDEN / "qwen" / "tokenizer.json", tmp_path)
    write(tmp_path, tokenizer_config__json={"eos_token": "<|im_end|>"} | given)
    made = JsonTokenizer(Directory.read(tmp_path))
    with pytest.raises(Fault, match=says):
        _ = made.template


def test_template_files_take_precedence(tmp_path):
    shutil.copy(GOLDEN / "qwen" / "tokenizer.json", tmp_path)
    write(tmp_path, tokenizer_config__json={"eos_token": "<|im_end|>", "chat_template": "old"})
    assert tokenizers.load(tmp_path).template.prompt([{"role": "user", "content": "a"}]) == "old"
    write(tmp_path, chat_template__jinja="new {{ eos_token }}")
    write(tmp_path / "additional_chat_templates", tool_use__jinja="tools")
    template = tokenizers.load(tmp_path).template
    assert template.prompt([{"role": "user", "content": "a"}]) == "new <|im_end|>"
    assert template.prompt([{"role": "user", "content": "a"}], [{"name": "f"}]) == "tools"


def ranks(path: Path, more: int = 0) -> Path:
    tokens = [bytes([i]) for i in range(256)] + [b"Th", b"The", b" c", b" ca", b" cat"][: 5 + more]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)))
    return path


def test_a_tiktoken_file_without_tiktoken(tmp_path, monkeypatch):
    def missing(name, *rest):
        if name == "tiktoken":
            raise ImportError
        return builtins.__import__(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        Fault, match=r"qwen.tiktoken: reading tiktoken's files needs tiktoken: pip install 'jaxpost\[hf"
    ):
        tokenizers.load(ranks(tmp_path / "qwen.tiktoken"))


def test_tiktoken_files_that_are_refused(tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    with pytest.raises(Fault, match=r"tokenizer.model: a tiktoken file does not say how .* \(cl100k, llama3, qwen\)"):
        tokenizers.load(ranks(place / "tokenizer.model"))
    cut = ranks(tmp_path / "qwen.tiktoken")
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(
        Fault, match="qwen.tiktoken:261: not a token in base64 and its rank; the file is damaged or cut"
    ):
        tokenizers.load(cut)
    ranks(tmp_path / "qwen.tiktoken", more=-1)
    cut.write_bytes(cut.read_bytes().split(b"\n", 9)[-1])
    with pytest.raises(Fault, match="251 tokens whose ranks are not 0, 1, 2"):
        tokenizers.load(cut)


def test_a_tiktoken_file(tmp_path):
    pytest.importorskip("tiktoken", reason="tiktoken comes with the extra jaxpost[hf]")
    made = tokenizers.load(ranks(tmp_path / "qwen.tiktoken"))
    assert (made.bos, made.piece(made.eos), made.vocab_size) == (None, "<|endoftext|>", 261 + 208)
    text = "The cat漢é 🙂<|im_end|>12"
    ids, spans = made.encode_offsets(text)
    assert ids.tolist()[:2] == [257, 260] and made.encode(text) == ids.tolist() and 263 in ids
    assert "".join(text[a:b] for a, b in spans) == text and (np.diff(spans.ravel()) >= 0).all()
    assert made.decode(ids) == "The cat漢é 🙂12" and set(made.ends) == {261, 263}
    assert [i.tolist() for i, _ in made.encode_offsets_batch([text, ""], ["", ""])] == [ids.tolist(), []]
    llama = tokenizers.load(ranks(write(tmp_path / "Llama-3") / "tokenizer.model"))
    assert llama.piece(llama.bos) == "<|begin_of_text|>" and llama.vocab_size == 261 + 256
    assert [llama.piece(i) for i in llama.ends] == ["<|end_of_text|>", "<|eot_id|>"]
    assert prompt_ids(llama, "The") == [261, 257]


def test_what_a_config_says_of_the_template(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}### {{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ enable_thinking }}{% endif %}"
    )
    asked = [{"role": "user", "content": "a"}]
    said = [*asked, {"role": "assistant", "content": "b"}]
    with pytest.raises(Fault, match="which is what a sampler sees, is not how it begins"):
        parts_of({"messages": said}, None, tokenizers.load(GOLDEN / "qwen", Chat(str(file), False)).template)
    ids = tuple(LOADED["qwen"].encode("### assistant:"))
    for response in ("### assistant:", ids):
        chat = Chat(str(file), thinking=False, response=response)
        made = tokenizers.load(GOLDEN / "qwen", chat)
        assert made.template.prompt(asked).endswith("<|im_end|>False")
        parts = parts_of({"messages": said}, None, made.template)
        assert [part.text for part in parts if part.trained] == ["b<|im_end|>"]
    made.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_bytes() == file.read_bytes()
    special = tokenizers.load(GOLDEN / "qwen", Chat(str(file), response=(made.eos, *ids))).template
    assert special.response == "<|im_end|>### assistant:"
    with pytest.raises(Fault, match="no chat template at .*nowhere.jinja .No such file"):
        tokenizers.load(GOLDEN / "qwen", Chat(template=str(tmp_path / "nowhere.jinja")))
    with pytest.raises(Fault, match="it has no chat template for the config's chat.response"):
        tokenizers.load(GOLDEN / "qwen", Chat(response="x"))


def test_the_date_that_a_config_gives_is_the_one_written(tmp_path):
    file = tmp_path / "dated.jinja"
    file.write_text("{{ strftime_now('%d %b %Y') }}{% for message in messages %}{{ message.content }}{% endfor %}")
    template = tokenizers.load(GOLDEN / "qwen", Chat(str(file), today="2024-02-29")).template
    assert template.prompt([{"role": "user", "content": "Hi"}]) == "29 Feb 2024Hi"
