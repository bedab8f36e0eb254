# SPDX-License-Identifier: Apache-2.0
"""Exact match and ROUGE, against figures counted by hand."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.evals import text
from jaxpost.evals.text import exact, rouge, rouge_missing
from jaxpost.faults import Fault


@pytest.mark.parametrize(
    "answer, target, score",
    [
        ("yes", "yes", 1.0),
        ("  Yes\n", "yes", 1.0),
        ("two  red\tballs", "two red balls", 1.0),
        ("STRASSE", "straße", 1.0),
        ("yes.", "yes", 0.0),
        ("the dog", "dog", 0.0),
        ("", "yes", 0.0),
        ("3 14", "314", 0.0),
    ],
)
def test_exact_ignores_case_and_white_space_only(answer, target, score):
    assert exact(answer, target) == score


@given(st.text(), st.text())
def test_exact_is_symmetric_and_ignores_spacing(a, b):
    assert exact(a, b) == exact(b, a)
    assert exact(a, "\n " + "  ".join(a.split()) + "\t") == 1.0


def test_rouge_by_hand():
    # the / cat / sat against the / cat / lay / down: words 2 of 3 and 2 of 4, pairs 1 of 2 and 1 of 3.
    scores = rouge("The cat sat.", "the cat lay down")
    assert scores["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rougeL"] == pytest.approx(scores["rouge1"])


def test_rouge_of_order():
    scores = rouge("c b a", "a b c")
    assert scores["rouge1"] == 1.0 and scores["rouge2"] == 0.0
    assert scores["rougeL"] == pytest.approx(1 / 3)


def test_rouge_stems_only_when_asked():
    assert rouge("running dogs", "run dog")["rouge1"] == 0.0
    assert rouge("running dogs", "run dog", stemmed=True)["rouge1"] == 1.0


def test_rouge_of_nothing_is_zero():
    assert set(rouge("", "a b").values()) == {0.0}


def test_without_the_package_rouge_names_the_extra(monkeypatch):
    assert rouge_missing() is None
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    text._scorer.cache_clear()
    with pytest.raises(Fault, match=r"pip install 'jaxpost\[eval\]'"):
        rouge("a", "b")
    assert "jaxpost[eval]" in rouge_missing()
    text._scorer.cache_clear()
