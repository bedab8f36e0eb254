# SPDX-License-Identifier: Apache-2.0
"""The number that an answer ends in, in made-up answers and in all of GSM8K's."""

import json
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.evals.numbers import final_number
from jaxpost.evals.rewards import Answered, named


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 48/2 = <<48/2=24>>24.\n#### 24", "24"),
        ("#### 1,000", "1000"),
        ("#### $2,520,000.50 a year, in 3 years", "2520000.50"),
        ("The answer is 72.", "72"),
        ("It costs $18.", "18"),
        ("-7", "-7"),
        ("That is -$5", "-5"),
        ("That is \u22125 degrees", "-5"),
        ("10-5", "5"),
        ("(3)-4", "4"),
        ("50%", "50"),
        ("1,2,3", "3"),
        ("12,34", "34"),
        ("1,2345", "2345"),
        ("about .5", "0.5"),
        ("3.0 apples", "3"),
        (r"so \boxed{42} it is, of 100", "42"),
        (r"\boxed{1} then \boxed{\$1,250}", "1250"),
        (r"\boxed{x = {7}} 9", "7"),
        (r"\boxed{12", "12"),
        (r"\boxed{-\frac{3}{4}}", "-0.75"),
        (r"\boxed{5} #### 6", "5"),
        ("#### 1\n#### 2", "2"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_what_an_answer_ends_in(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "####", "####\nno", r"\boxed{}", r"3 \boxed{x}", r"\boxed{\frac{1}{0}}"])
def test_no_number(text):
    assert final_number(text) is None


def test_strict_wants_a_mark():
    assert final_number("it is 5", strict=True) is None
    assert final_number("#### 5", strict=True) == final_number(r"\boxed{5}", strict=True) == 5


@given(st.integers(-(10**12), 10**12), st.text(alphabet="ab .,:=$\n", max_size=20))
def test_any_number_is_read_back_as_it_is_written(number, before):
    for written in (f"{number}", f"{number:,}", f"{number}.0"):
        assert final_number(f"{before} #### {written}") == number
        assert final_number(f"{before} {written}.") == number


def test_gsm8k(shared_data):
    """Every reference is read as OpenAI's own expression reads it; of every twentieth the reward is right, too."""
    check = named("number")
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    theirs = re.compile(r"#### (\-?[0-9\.\,]+)")

    def scored(row, text):
        return check(Answered(row["question"], text, row, 1, "end"))

    for number, row in enumerate(rows):
        found = theirs.search(row["answer"])
        wanted = final_number(row["answer"])
        assert found and wanted is not None and wanted == Decimal(found[1].replace(",", ""))
        if number % 20:
            continue
        assert scored(row, row["answer"]) == 1
        assert scored(row, rf"So it is \boxed{{{found[1]}}}.") == scored(row, f"The answer is ${wanted:,}.") == 1
        assert scored(row, f"#### {wanted + 1}") == scored(row, "") == 0
    assert len(rows) == 7473
