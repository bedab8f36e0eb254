# SPDX-License-Identifier: Apache-2.0
"""Rewards by name: what they give, what they are not for, and what is wrong with a name."""

import fractions
import math
import re
from typing import Any

import numpy as np
import pytest

from jaxpost.data.nano import worlds
from jaxpost.evals.rewards import BUILT_IN, Answered, Scored, checked, named
from jaxpost.faults import Fault


def answered(text="", row=None, tokens=10, reason: Any = "end"):
    return Answered("?\n", text, row or {}, tokens, reason)


@pytest.mark.parametrize(
    ("spec", "text", "row", "score"),
    [
        ("exact", " The  cat\n", {"answer": "the cat"}, 1),
        ("exact", "The cat.", {"answer": "the cat"}, 0),
        ("exact", "7", {"answer": 7}, 1),
        ("exact", "7", {"answer": None}, None),
        ("exact", "7", {"target": "7"}, None),
        ("exact:target", "7", {"target": "7"}, 1),
        ("number", "It is 1,000", {"answer": "#### 1000"}, 1),
        ("number:strict", "It is 5", {"answer": 5}, 0),
        ("number:gold,strict", "#### 5", {"gold": 5}, 1),
        ("number", "5", {}, None),
        ("pattern:^yes|no$", "well, no", {}, 1),
        ("pattern:^(yes|no)$", "well, no", {}, 0),
        ("pattern:a:b", "a:b", {}, 1),
        ("contains:red, dark blue", "It was Dark Blue.", {}, 0.5),
        ("contains:red", "bored, reds", {}, 0),
        ("avoids:fool,loser", "You foolish man", {}, 1),
        ("avoids:fool,loser", "A Loser!", {}, 0),
        ("choice", "The answer is Red.", {"answer": "red", "options": ("red", "blue")}, 1),
        ("choice", "red or blue", {"answer": "red", "options": ("red", "blue")}, 0),
        ("choice", "dark red", {"answer": "dark red", "options": ["red", "dark red"]}, 1),
        ("choice", "dark red", {"answer": "red", "options": ["red", "dark red"]}, 0),
        ("choice", "", {"answer": "red", "options": ["red"]}, 0),
        ("choice", "red", {"answer": "red", "options": None}, None),
        ("manners_kind", "It is 5.", {"prompt": "2 + 3"}, 1),
        ("manners_right", "It is 5.", {"prompt": "2 + 3"}, None),
        ("reviews_gold", "", {"item": "film", "part": None}, 0),
    ],
)
def test_what_an_answer_is_worth(spec, text, row, score):
    assert named(spec)(answered(text, row)) == score


@pytest.mark.parametrize(
    ("spec", "scores"),
    [
        ("length:40", {0: 0, 20: 0.5, 40: 1, 60: 0.5, 80: 0, 500: 0}),
        ("overlong:256,64", {0: 0, 192: 0, 224: -0.5, 256: -1, 1000: -1}),
    ],
)
def test_lengths(spec, scores):
    assert {tokens: named(spec)(answered(tokens=tokens)) for tokens in scores} == scores


def test_who_stops_by_itself_has_ended():
    assert [named("ended")(answered(reason=reason)) for reason in ("end", "stop", "length")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("exakt", "did you mean exact"),
        ("", "no reward is called '' (one's own"),
        ("pattern", "empty pattern"),
        ("pattern:(", "no regular expression"),
        ("length", "length:TARGET"),
        ("length:0", "above 0"),
        ("length:ten", "whole numbers"),
        ("overlong:64", "overlong:MOST,MARGIN"),
        ("overlong:64,256", "cannot be larger"),
        ("avoids", "empty word"),
        ("contains:a,,b", "empty word"),
        ("ended:now", "takes no options"),
        ("number:gold,loose", "'loose' is no option"),
        ("mine.py", "names a file and no function"),
        ("nowhere/mine.py:score", "no such file"),
    ],
)
def test_names_that_are_none(spec, said):
    with pytest.raises(Fault, match=re.escape(said)):
        named(spec)


def test_a_reference_without_a_number_is_a_fault():
    with pytest.raises(Fault, match="holds no number"):
        named("number")(answered("5", {"answer": "five"}))


def test_a_function_of_ones_own(tmp_path):
    path = tmp_path / "random.py"  # a name that the library itself imports
    path.write_text(
        "from dataclasses import dataclass\n"
        "WORDS = 3\n"
        "def words(answered):\n"
        "    return len(answered.text.split()) / WORDS\n"
        "def broken(answered):\n"
        "    return answered.row['gold']\n"
    )
    assert named(f"{path}:words")(answered("one two three")) == 1
    with pytest.raises(Fault, match=r"line 6 in broken: KeyError: 'gold'"):
        named(f"{path}:broken")(answered())
    with pytest.raises(Fault, match="no function 'word'; did you mean words"):
        named(f"{path}:word")
    with pytest.raises(Fault, match="WORDS is no function but int"):
        named(f"{path}:WORDS")
    bad = tmp_path / "bad.py"
    bad.write_text("def f(:\n")
    with pytest.raises(Fault, match="line 1: not Python"):
        named(f"{bad}:f")


@pytest.mark.parametrize(
    ("value", "scored"),
    [
        (None, Scored(None)),
        (1, Scored(1.0)),
        (True, Scored(1.0)),
        (fractions.Fraction(1, 2), Scored(0.5)),
        (np.float32(0.25), Scored(0.25)),
        (np.array([2.0]).sum(), Scored(2.0)),
        (math.nan, Scored(None, "NaN")),
        (-math.inf, Scored(None, "infinite")),
        (10**400, Scored(None, "infinite")),
        ("1", Scored(None, "no number")),
        ([1.0], Scored(None, "no number")),
        (np.zeros(2), Scored(None, "no number")),
        (1j, Scored(None, "no number")),
    ],
)
def test_what_a_reward_returned(value, scored):
    assert checked(value) == scored


def test_the_worlds_truths_are_rewards():
    assert worlds.MEASURES.keys() <= BUILT_IN.keys()
