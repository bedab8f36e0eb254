# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.text import Part
from jaxpost.data.tokenizers import SentencePieceTokenizer, align, check_vocabulary, tokenise
from jaxpost.faults import Fault

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text("ab  \n.漢é🙂½ﬁ", max_size=30)


@given(TEXTS)
def test_offsets_put_together_are_the_text(tokenizer, text):
    ids, spans = tokenizer.encode_offsets(text)
    assert ids.tolist() == tokenizer.encode(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert (spans[:, 0] <= spans[:, 1]).all() and (np.diff(spans.ravel()) >= 0).all()
    assert tokenizer.decode(ids) == text


@given(TEXTS)
def test_offsets_stay_in_order_when_the_text_is_normalised(folding, text):
    ids, spans = folding.encode_offsets(text)
    assert ids.tolist() == folding.encode(text)
    assert (np.diff(spans.ravel()) >= 0).all() and spans.max(initial=0) <= len(text)


def test_offsets_count_characters_not_bytes(tokenizer):
    ids, spans = tokenizer.encode_offsets("漢é x")
    pieces = [tokenizer.piece(i) for i in ids.tolist()]
    assert [p for p in pieces if p.startswith("<0x")][:3] == ["<0xE6>", "<0xBC>", "<0xA2>"]
    assert spans[pieces.index("<0xA2>")].tolist() == [0, 1]
    assert spans[-1, 1] == 4


@given(st.lists(st.tuples(st.text("ab \n漢", max_size=8), st.booleans()), min_size=1, max_size=5))
def test_a_token_is_trained_iff_its_last_character_is(tokenizer, pieces):
    parts = [Part(*piece) for piece in pieces]
    flags = [part.trained for part in parts for _ in part.text]
    _, ranges = tokenizer.encode_offsets("".join(part.text for part in parts))
    wanted = [False, *(flags[b - 1 if b > a else a] for a, b in ranges), parts[-1].trained]
    if not any(wanted):
        with pytest.raises(Fault, match="loss mask is all zeros"):
            tokenise(tokenizer, parts)
        return
    tokens, spans = align(tokenizer, parts)
    assert tokens.ids[0] == tokenizer.bos and tokens.ids[-1] == tokenizer.eos
    assert tokens.trained.tolist() == wanted
    np.testing.assert_array_equal(spans[1:-1], ranges)


def test_a_token_across_the_boundary_is_the_completions(tokenizer):
    whole, spans = align(tokenizer, [Part("The do", False), Part("g", True)])
    straddling = [i for i, (a, b) in enumerate(spans) if a < 6 < b]
    assert len(straddling) == 1, "the vocabulary should hold a piece that ends in 'dog'"
    assert whole.trained[straddling[0]]


def test_one_tokenisation_whatever_the_parts(tokenizer):
    one = tokenise(tokenizer, [Part("The dog does not mind.", True)])
    two = tokenise(tokenizer, [Part("The dog d", False), Part("oes not mind.", True)])
    np.testing.assert_array_equal(one.ids, two.ids)
    assert one.ids.dtype == np.int32 and one.trained.dtype == bool


def test_train_on_all_trains_everything_but_the_bos(tokenizer, folding):
    parts = [Part("The cat\n", False), Part("sat", True)]
    assert tokenise(tokenizer, parts, "all").trained.tolist()[:2] == [False, True]
    assert tokenise(tokenizer, parts, "all").trained[1:].all()
    assert tokenise(folding, parts, "all").trained.all()


def test_without_a_bos_none_is_written(folding):
    tokens = tokenise(folding, [Part("The cat", True)])
    assert tokens.ids.tolist() == [*folding.encode("The cat"), folding.eos]


def test_special_tokens_written_out_are_not_doubled(tokenizer):
    plain, spans = align(tokenizer, [Part("The", False), Part(" cat", True)])
    literal, literal_spans = align(tokenizer, [Part("<s>The", False), Part(" cat</s>", True)])
    np.testing.assert_array_equal(plain.ids, literal.ids)
    np.testing.assert_array_equal(plain.trained, literal.trained)
    assert literal_spans[0].tolist() == [0, 3] and literal_spans[-1].tolist() == [10, 14]
    assert (literal_spans[1:-1] == spans[1:-1] + 3).all()


def test_a_mask_of_zeros_is_an_error(tokenizer, folding):
    with pytest.raises(Fault, match=r"f\.jsonl:3: no token of it would be trained"):
        tokenise(tokenizer, [Part("The cat", False)], where="f.jsonl:3")
    with pytest.raises(Fault, match="loss mask is all zeros"):  # an eos alone follows nothing
        tokenise(folding, [Part("", True)])


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "tokenizer.model"):
        again = SentencePieceTokenizer.load(path)
        assert (again.vocab_size, again.bos, again.eos, again.pad) == (tokenizer.vocab_size, 1, 2, 0)
        assert again.encode("The lazy dog") == tokenizer.encode("The lazy dog")


def test_the_pad_is_never_the_eos(tokenizer, folding):
    assert (folding.bos, folding.eos, folding.pad) == (None, 1, 0)
    assert tokenizer.pad not in (tokenizer.eos, tokenizer.bos)


def test_files_that_are_no_tokenizer(tokenizer, tmp_path, written):
    with pytest.raises(Fault, match=r"no tokenizer at .*nowhere\.model \(No such file"):
        SentencePieceTokenizer.load(tmp_path / "nowhere.model")
    with pytest.raises(Fault, match=r"no tokenizer at .*tokenizer\.model"):
        SentencePieceTokenizer.load(tmp_path)
    with pytest.raises(Fault, match=r"empty\.model: the file is empty"):
        SentencePieceTokenizer.load(written("empty.model", b""))
    with pytest.raises(Fault, match=r"text\.model: not a SentencePiece model"):
        SentencePieceTokenizer.load(written("text.model", "hello " * 50))
    tokenizer.save(tmp_path)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 100):
        with pytest.raises(Fault, match=rf"not a SentencePiece model, or cut short \({cut} bytes\)"):
            SentencePieceTokenizer.load(written("cut.model", whole[:cut]))


def test_every_token_needs_a_row_of_the_embedding(tokenizer):
    check_vocabulary(tokenizer, tokenizer.vocab_size)
    check_vocabulary(tokenizer, tokenizer.vocab_size + 64)
    with pytest.raises(Fault, match=rf"has {tokenizer.vocab_size} pieces, the model's embedding only 100 rows"):
        check_vocabulary(tokenizer, 100)


def test_a_real_tokenizer_aligns_real_text(shared_data):
    real = SentencePieceTokenizer.load(shared_data / "tokenizers" / "mistral-v1.model")
    assert (real.vocab_size, real.bos, real.eos, real.pad) == (32000, 1, 2, 0)
    text = " Zwölf Boxkämpfer\n\njagen  漢字 🙂 <<48/2=24>>\t"
    ids, spans = real.encode_offsets(text)
    assert "".join(text[a:b] for a, b in spans) == text and real.decode(ids) == text
