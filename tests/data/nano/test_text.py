# SPDX-License-Identifier: Apache-2.0
"""Documents: their size, their words, and that they hold no instructions."""

import re
import string

import pytest

from jaxpost.data.nano import TASKS, Documents
from jaxpost.data.nano.dice import fingerprint
from jaxpost.faults import Fault

GOLDEN = 10575074453651559467  # of the first five documents; changes only when the text is changed on purpose


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return list(Documents()[:5000])


def literals(pattern: str) -> list[str]:
    return [literal for literal, _, _, _ in string.Formatter().parse(pattern)]


def test_golden_documents():
    assert fingerprint("\0".join(Documents()[:5])) == GOLDEN


def test_documents_have_the_right_size(sample):
    sizes = [len(document.split()) for document in sample]
    assert min(sizes) >= 25 and max(sizes) <= 300
    assert 100 <= sum(sizes) / len(sizes) <= 180


def test_nothing_is_left_unfilled(sample):
    text = "\n".join(sample)
    assert not re.search(r"[{}\[\]_]", text)
    assert not re.search(r"\b[Aa] (?!and|of|in|is|as|on)[aeio][a-z]", text)
    assert "  " not in text and "()" not in text


def test_documents_hardly_repeat(sample):
    """Facts come back again and again, whole lines of people do not."""
    assert len(set(sample)) == len(sample)
    assert not set(sample) & set(Documents("test")[:1000])


def test_every_word_of_the_templates_is_in_the_text(sample):
    known = set(re.findall(r"[a-z]+", "\n".join(sample).lower()))
    asked = {
        word
        for task in TASKS.values()
        for template in task.templates
        for literal in literals(template.prompt) + literals(template.target)
        for word in re.findall(r"[a-z]+", literal.lower())
    }
    assert len(asked) > 300
    assert asked - known == set()


def test_every_word_of_the_rows_is_in_the_text(sample):
    known = set(re.findall(r"[a-z]+", "\n".join(sample).lower()))
    rows = [row for task in TASKS.values() for row in task.source("train")[:150]]
    used = {word for row in rows for value in row.values() for word in re.findall(r"[a-z]+", str(value).lower())}
    assert used - known == set()


def test_the_text_holds_no_instructions(sample):
    """No five words in a row of a template's own wording occur in the text."""
    text = "\n".join(sample)
    for task in TASKS.values():
        for template in task.templates:
            for literal in literals(template.prompt):
                if len(literal.split()) >= 5:
                    assert literal.strip() not in text, (task.name, literal)


def test_the_world_is_small_enough_for_two_thousand_pieces(sample):
    words = {word for document in sample for word in re.findall(r"[A-Za-z]+", document)}
    assert 1000 < len({word.lower() for word in words}) < 1700


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d+ plus \d+ is \d+",
        r"opposite of \w+ is \w+",
        r"in order are",
        r"means the same as",
        r"is spelled( \w)+",
        r"positive",
        r"OPTIONS:\n- ",
        r"name: \w+\nage: \d+",
        r"is bigger than",
        r"does not follow",
        r"lives in the",
    ],
)
def test_skills_are_in_the_text(sample, pattern):
    assert len(re.findall(pattern, "\n".join(sample))) >= 20


def test_sums_in_the_text_are_right(sample):
    text = "\n".join(sample)
    sums = re.findall(r"(\d+) (?:\+|plus) (\d+) (?:=|is) (\d+)", text)
    differences = re.findall(r"(\d+) (?:-|minus) (\d+) (?:=|is) (\d+)", text)
    assert len(sums) > 300 and len(differences) > 300
    assert all(int(a) + int(b) == int(c) for a, b, c in sums)
    assert all(int(a) - int(b) == int(c) for a, b, c in differences)


def test_sorted_and_reversed_lists_in_the_text_are_right(sample):
    text = "\n".join(sample)
    for verb, order in (("sort", sorted), ("reverse", lambda words: words[::-1])):
        told = re.findall(rf"had to {verb} ([a-z, ]+) and wrote ([a-z, ]+)\.", text)
        assert len(told) > 20
        assert all(order(given.split(", ")) == written.split(", ") for given, written in told)


def test_random_access_and_faults():
    documents = Documents("train", 10)
    assert len(documents) == 10 and documents[-1] == documents[9] and documents[2:4] == [documents[2], documents[3]]
    assert documents[0] != Documents("train", 10, seed=1)[0]
    with pytest.raises(IndexError):
        documents[10]
    with pytest.raises(Fault, match="validation"):
        Documents("validation")  # type: ignore[arg-type]
