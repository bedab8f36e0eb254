# SPDX-License-Identifier: Apache-2.0
"""What rows say of their labels, and what is wrong with those that say it badly."""

import pytest

from jaxpost.data.rows.labels import Classes, Labelled, labelled
from jaxpost.data.rows.shapes import normalise, shape_of
from jaxpost.data.text import parts_of
from jaxpost.faults import Fault

NAMED = Classes(3, ("good", "bad", "so so"))
TEXT = "Ann has a red cup. Ben has a red hat."
SQUAD = {"question": "What has Ben?", "context": TEXT, "answers": {"text": ["a red hat"], "answer_start": [27]}}


def read(kind, classes=NAMED, columns=None, **row):
    return labelled(row, kind, classes, columns)


@pytest.mark.parametrize("label, number", [("bad", 1), (2, 2), ("2", 2), (True, 1), ("so so", 2)])
def test_a_class_goes_by_number_or_name(label, number):
    assert read("sequence", text="Fine.", label=label) == Labelled("", "Fine.", ((0, 5),), (number,))


def test_words_are_joined_and_those_without_a_label_left_out():
    said = read("token", tokens=["Ann", "saw", "Ben"], labels=["good", None, "bad"])
    assert said == Labelled("", "Ann saw Ben", ((0, 3), (8, 11)), (0, 1))
    assert read("token", tokens='["a", "b"]', labels="[-100, 2]").ranges == ((2, 3),), "as files of columns hold them"


@pytest.mark.parametrize(
    "row",
    [
        {"context": TEXT, "start": 27, "end": 36},
        {"text": TEXT, "start": 26, "end": 36},  # with the blank before it
        {"context": TEXT, "answer": "a red hat"},
        {"context": TEXT, "answer": "a red hat", "start": 27},
        {"context": TEXT, "answers": SQUAD["answers"]},
    ],
)
def test_a_span_by_its_place_or_its_words(row):
    (where,) = read("span", question="What has Ben?", **row).ranges
    assert where == (27, 36)
    assert read("span", question="What has Ben?", **row).before == "What has Ben?\n"
    assert read("span", **row).before == ""


def test_the_same_words_elsewhere_are_another_span():
    assert read("span", context=TEXT, answer="red").ranges == ((10, 13),), "the first, if nothing else is said"
    assert read("span", context=TEXT, answer="red", start=29).ranges == ((29, 32),)


@pytest.mark.parametrize(
    "kind, row, message",
    [
        ("sequence", {"text": "a", "label": "god"}, "'label': no class is called 'god'; did you mean good"),
        ("sequence", {"text": "a", "label": 3}, "'label' is 3, and the classes are numbered 0 to 2"),
        ("sequence", {"text": "a", "label": 1.5}, "must be a class, by number or name, not float"),
        ("sequence", {"text": "a"}, "the field 'label' is missing"),
        ("token", {"tokens": ["a", "b"], "labels": [1]}, "2 tokens and 1 labels"),
        ("token", {"tokens": "a b", "labels": [1]}, "'tokens' must be a list"),
        ("token", {"tokens": ["a", 3], "labels": [1, 1]}, r"'tokens'\[1\] must be a string"),
        ("token", {"tokens": ["a", "b"], "labels": [1, "c"]}, r"'labels'\[1\]: no class is called 'c'"),
        ("span", {"context": TEXT}, "a span needs 'start' and 'end' in characters, or its text as 'answer'"),
        ("span", {"context": TEXT, "answer": "blue"}, "the answer 'blue' does not stand in the text"),
        ("span", {"context": TEXT, "answer": "red", "start": 11}, "the answer 'red' does not stand in the text"),
        ("span", {"context": TEXT, "start": 30, "end": 99}, "from 30 to 99 lies outside of the 37 characters"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(kind, row, message):
    with pytest.raises(Fault, match=message):
        read(kind, **row)


def test_files_may_call_them_otherwise():
    columns = {"sentence": "text", "sentiment": "label"}
    assert read("sequence", columns=columns, sentence="Bad.", sentiment="bad").classes == (1,)
    with pytest.raises(Fault, match="set labels to the names of the classes"):
        read("sequence", Classes(2), text="a", label="good")


def test_such_rows_have_shapes_and_are_not_tuned_on():
    assert shape_of({"tokens": ["a"], "labels": [0]}) == "words" and shape_of(SQUAD) == "passage"
    assert shape_of(SQUAD, {"question": "prompt", "answers.text": "completion"}) == "completion"
    assert normalise(SQUAD).fields.row is SQUAD
    with pytest.raises(Fault, match="the classify recipe learns from it, or map its fields"):
        parts_of(SQUAD)
