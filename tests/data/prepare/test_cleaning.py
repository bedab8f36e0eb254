# SPDX-License-Identifier: Apache-2.0
"""What is left out, and that each row is counted once, for the first reason, and the rest keep their order."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.prepare import cleaning as module
from jaxpost.data.prepare.cache import identity
from jaxpost.data.prepare.cleaning import (
    KEEP_ALL,
    Cleaning,
    cleaned,
    fault_of,
    left_out,
    repeated,
    repeated_lines,
    symbols,
    text_of,
)
from jaxpost.data.sources import Record
from jaxpost.data.tasks import Example
from jaxpost.faults import Fault

SENTENCES = [
    "The river runs through the green valley to the sea.",
    "A dog does not mind that the fox jumps over it.",
    "Seven apples and three pears make ten pieces of fruit.",
]


def rows(*texts):
    return [{"text": text} for text in texts]


@given(st.lists(st.sampled_from(["a", "b", "c c", "dd dd dd", "!!!", ""]), max_size=12))
def test_each_row_is_kept_or_counted_once_and_the_first_stays(texts):
    cleaning = Cleaning(min_chars=1, symbols=0.5)
    reasons = left_out(rows(*texts), cleaning)
    for i, text in enumerate(texts):
        wanted = "too few characters" if not text else "too many symbols" if text == "!!!" else ""
        wanted = wanted or ("duplicate" if text in texts[:i] else "")
        assert reasons.get(i, "") == wanted


def test_near_duplicates_are_of_what_is_kept(tmp_path):
    first, second, third = SENTENCES
    texts = [first, second, first.upper(), "!" * 60, third, second + "!", "!" * 60]
    found = cleaned(rows(*texts), Cleaning(near=0.8, symbols=0.5), root=tmp_path)
    assert [row["text"] for row in found] == [first, second, third]
    assert found.counts == {"too many symbols": 2, "near duplicate": 2}
    assert len(found) == 3 and found[-1]["text"] == third


SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "b", "label": False}),
        (
            {"prompt": "a", "completions": ["b", "c"], "scores": [1, 0]},
            {"prompt": "a", "completions": ["b", "c"], "scores": [0, 1]},
        ),
        (
            {"messages": [{**said, "role": role} for said, role in zip(SAID, ("user", "assistant"), strict=True)]},
            {"messages": [{**said, "role": role} for said, role in zip(SAID, ("system", "assistant"), strict=True)]},
        ),
        ({"prompt": "x\ny", "completion": "z"}, {"prompt": "x", "completion": "y\nz"}),
        ({"text": "a\nb"}, {"prompt": "a", "completion": "b"}),
        (Example("a", "b\nc"), Example("a\nb", "c")),
    ],
)
def test_rows_of_the_same_words_are_no_duplicates(one, other):
    assert text_of(one) == text_of(other)
    assert left_out([one, other, one], Cleaning()) == {2: "duplicate"}


def test_a_row_is_its_own_duplicate_however_its_fields_are_ordered():
    turned = {"messages": [dict(reversed(said.items())) for said in SAID], "source": "elsewhere"}
    assert left_out([{"messages": list(SAID)}, turned], Cleaning()) == {1: "duplicate"}


def test_a_full_disk_keeps_nothing_and_cleans_all_the_same(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.np, "save", full)
    told = []
    found = cleaned(rows("a", "a", "b"), Cleaning(), root=tmp_path, unkept=told.append)
    assert len(found) == 2 and found.counts == {"duplicate": 1}
    assert len(told) == 1 and "No space left" in str(told[0])
    with pytest.raises(Fault, match="cannot keep"):
        cleaned(rows("a", "a", "b"), Cleaning(), root=tmp_path)


def test_a_near_duplicate_can_be_an_exact_one():
    same = rows(SENTENCES[0], SENTENCES[0])
    assert left_out(same, Cleaning(near=0.8)) == {1: "duplicate"}
    assert left_out(same, Cleaning(exact=False, near=0.8)) == {1: "near duplicate"}
    assert left_out(same, KEEP_ALL) == {} and not KEEP_ALL.does_something and Cleaning().does_something


def test_bounds_are_inclusive():
    assert [fault_of("a" * n, Cleaning(min_chars=3, max_chars=5)) for n in (2, 3, 5, 6)] == [
        "too few characters",
        "",
        "",
        "too many characters",
    ]
    counted = left_out(
        rows("a", "b b", "c c c", "d d d d"), Cleaning(min_tokens=2, max_tokens=3), tokens=lambda r: len(r["text"][::2])
    )
    assert counted == {0: "too few tokens", 3: "too many tokens"}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("abc 12", 0.0),
        ("ab!?", 0.5),
        ("", 0.0),
        ("日本語。", 0.25),
        ("हिन्दी", 0.0),
        ("e\u0301té", 0.0),
        ("   ", 0.0),
        ("#\n#", 1.0),
    ],  # fmt: skip
)
def test_symbols_are_neither_letters_nor_digits_in_any_language(text, share):
    assert symbols(text) == share


def test_what_repeats():
    assert repeated_lines("one\ntwo\n\none\n") == pytest.approx(3 / 9) and repeated_lines("") == 0
    assert repeated("abc" * 40) > 0.9 and repeated(SENTENCES[0]) == 0 == repeated("short" * 3)
    assert repeated("日本語" * 40) > 0.9
    text = SENTENCES[0] + "\n" + SENTENCES[0]
    assert fault_of(text, Cleaning(lines=0.4)) == "repeated lines" and fault_of(text, Cleaning(lines=0.6)) == ""
    assert fault_of(text.replace("\n", " "), Cleaning(repeats=0.2)) == "repeats itself"


def test_a_rows_text_is_all_that_it_says():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    assert text_of({"messages": messages}) == "Hi\nYes"
    assert text_of({"question": "a", "answer": "b"}, {"question": "prompt", "answer": "completion"}) == "a\nb"
    assert text_of({"prompt": "a", "chosen": "b", "rejected": "c"}) == "a\nb\nc"
    assert text_of(Example("a", "b")) == "a\nb"


def test_it_is_done_once_and_what_is_left_knows_itself(tmp_path, monkeypatch):
    data = [Record(row, f"f:{i}") for i, row in enumerate(rows("a", "a", "b", "cc"), start=1)]
    first = cleaned(data, Cleaning(), root=tmp_path)
    assert first.place_of(1) == "f:3"
    calls = []
    monkeypatch.setattr(module, "left_out", lambda *given: calls.append(given) or {1: "duplicate"})
    again = cleaned(data, Cleaning(), root=tmp_path)
    assert not calls and again.identity == first.identity and again.counts == first.counts
    other = cleaned(data, Cleaning(max_chars=9), root=tmp_path)
    assert calls and other.identity == first.identity, "the same rows are the same data"
    assert cleaned(data[1:], Cleaning(), root=tmp_path).identity != first.identity != identity(data)


@pytest.mark.parametrize(
    ("cleaning", "says"),
    [
        (Cleaning(near=1.5), "cleaning.near is 1.5; it is a share"),
        (Cleaning(min_chars=-1), "cleaning.min_chars is -1; it is at least 0"),
        (Cleaning(min_tokens=9, max_tokens=3), "cleaning.min_tokens is 9, above cleaning.max_tokens 3"),
        (Cleaning(min_chars=100), r"leaves nothing of 2 rows \(2 too few characters\)"),
    ],
)
def test_settings_that_cannot_be(cleaning, says, tmp_path):
    with pytest.raises(Fault, match=says):
        cleaned(rows("a", "b"), cleaning, root=tmp_path)


def test_a_bad_row_is_named(tmp_path):
    with pytest.raises(Fault, match="a.jsonl:3: "):
        cleaned([*rows("a"), Record({"words": "b"}, "a.jsonl:3")], Cleaning(), root=tmp_path)
