# SPDX-License-Identifier: Apache-2.0
"""Rows that are compared, as a person sees them."""

import pytest

from jaxpost.data.show_pairs import show_compared
from jaxpost.data.sources import Record
from jaxpost.faults import Fault

PAIR = {"prompt": "Is the sky blue?\n", "chosen": "Yes, it is", "rejected": "No", "margin": 1.5}


def test_a_preference_shows_its_prompt_once(tokenizer):
    shown = show_compared(Record(PAIR, "a.jsonl:3"), tokenizer).plain
    head, *rest = shown.split("\n", 1)
    assert head.startswith("a.jsonl:3 · prompt ") and "chosen " in head and head.endswith(" · margin 1.5")
    assert rest == ["Is the sky blue?\n\nchosen\n⟦Yes, it is</s>⟧\nrejected\n⟦No</s>⟧"]


def test_a_preference_of_messages(tokenizer):
    turns = [{"role": "user", "content": "Hi"}]
    row = {f: [*turns, {"role": "assistant", "content": c}] for f, c in (("chosen", "Yes"), ("rejected", "No"))}
    shown = show_compared(row, tokenizer).plain
    assert shown.count("Hi") == 1 and "⟦Yes" in shown and "⟦No" in shown


def test_the_best_of_a_ranking_comes_first(tokenizer):
    row = {"prompt": "Name a pet.\n", "completions": ["mat", "cat", "dog"], "scores": [0, 2, 1.5]}
    shown = show_compared(row, tokenizer).plain
    assert [shown.index(f"score {s}\n⟦{a}</s>⟧") for s, a in (("2", "cat"), ("1.5", "dog"), ("0", "mat"))] == sorted(
        shown.index(f"⟦{a}</s>⟧") - len(f"score {s}\n") for s, a in (("2", "cat"), ("1.5", "dog"), ("0", "mat"))
    )


@pytest.mark.parametrize(("label", "told"), [(True, "good\n⟦cat</s>⟧"), (False, "bad\n⟦cat</s>⟧")])
def test_a_labelled_answer(tokenizer, label, told):
    assert show_compared({"prompt": "Pet?\n", "completion": "cat", "label": label}, tokenizer).plain.endswith(told)


def test_a_prompt_alone(tokenizer):
    shown = show_compared({"prompt": "Name a pet."}, tokenizer).plain
    assert "a prompt of" in shown and shown.endswith("Name a pet.\n")


def test_what_has_no_room_is_counted(tokenizer):
    row = PAIR | {"prompt": "The cat sat. " * 20}
    shown = show_compared(row, tokenizer, seq_len=64).plain.splitlines()[0]
    assert " · cut to 64: " in shown and shown.endswith(" 0 of the answers")
    assert "left out: nothing to compare fits 1" in show_compared(row, tokenizer, seq_len=1).plain


def test_other_rows_are_refused(tokenizer):
    with pytest.raises(Fault, match="no preference, ranking, labelled answer or prompt"):
        show_compared({"text": "a"}, tokenizer)
