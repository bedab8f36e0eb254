# SPDX-License-Identifier: Apache-2.0
"""Rows as people publish them, and what becomes of them."""

import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.rows.shapes import (
    KNOWN,
    Completion,
    Dialogue,
    Preference,
    Prompt,
    Ranking,
    Text,
    Unpaired,
    normalise,
    shape_of,
)
from jaxpost.data.sources import Record
from jaxpost.faults import Fault


def says(role, content):
    return {"role": role, "content": content}


HI, HO, HUM, AGAIN = says("user", "Hi"), says("assistant", "Ho"), says("assistant", "Hum"), says("user", "Again")
ALPACA = {"instruction": "Add.", "input": "1 1", "output": "2"}
CALL = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}


@pytest.mark.parametrize(
    ("row", "shape", "is_"),
    [
        ({"text": "a", "id": 3}, "text", Text("a")),
        ({"messages": [HI, HO]}, "messages", Dialogue((HI, HO))),
        ({"messages": [HI, HO], "text": "x", "prompt": "y"}, "messages", Dialogue((HI, HO))),
        (
            {"messages": json.dumps([HI, HO]), "tools": '[{"name": "f"}]'},
            "messages",
            Dialogue((HI, HO), ({"name": "f"},)),
        ),
        ({"messages": [HI, HO | {"name": None}], "tools": None}, "messages", Dialogue((HI, HO))),
        (
            {"messages": [says("user", [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), HO]},
            "messages",
            Dialogue((HI, HO)),
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "S"},
            "sharegpt",
            Dialogue((says("system", "S"), HI, HO)),
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, CALL, {"from": "observation", "value": "2"}]},
            "sharegpt",
            Dialogue((HI, CALLED, says("tool", "2"))),
        ),
        ({"prompt": "a", "completion": "b"}, "completion", Completion("a", "b")),
        ({"prompt": "a", "completion": "b", "label": None}, "completion", Completion("a", "b")),
        ({"prompt": "Hi", "completion": [HO]}, "completion", Completion((HI,), (HO,))),
        ({"prompt": [HI], "completion": "Ho"}, "completion", Completion((HI,), (HO,))),
        (ALPACA, "alpaca", Completion((says("user", "Add.\n1 1"),), (says("assistant", "2"),))),
        (
            ALPACA | {"input": "", "system": "S", "history": [["Hi", "Ho"]], "text": "rendered"},
            "alpaca",
            Completion((says("system", "S"), HI, HO, says("user", "Add.")), (says("assistant", "2"),)),
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", Preference("a", "b", "c")),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}, "preference", Preference("a", "b", "c", 2.0)),
        ({"chosen": [HI, HO], "rejected": [HI, HUM]}, "preference", Preference((HI,), (HO,), (HUM,))),
        ({"prompt": "Hi", "chosen": [HI, HO], "rejected": [HI, HUM]}, "preference", Preference((HI,), (HO,), (HUM,))),
        ({"prompt": "Hi", "chosen": [HO], "rejected": [HUM]}, "preference", Preference((HI,), (HO,), (HUM,))),
        ({"prompt": [HI], "chosen": [HI, HO], "rejected": [HI, HUM]}, "preference", Preference((HI,), (HO,), (HUM,))),
        ({"messages": [HI], "chosen": HO, "rejected": HUM}, "preference", Preference((HI,), (HO,), (HUM,))),
        (
            {"instruction": "Hi", "input": "", "chosen": "Ho", "rejected": "Hum"},
            "preference",
            Preference((HI,), (HO,), (HUM,)),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Ho"},
                "rejected": {"from": "gpt", "value": "Hum"},
            },
            "preference",
            Preference((HI,), (HO,), (HUM,)),
        ),
        ({"prompt": "a", "completion": "b", "label": False}, "unpaired", Unpaired("a", "b", False)),
        ({"prompt": "a", "completion": "b", "label": "True"}, "unpaired", Unpaired("a", "b", True)),
        ({"messages": [HI, HO], "kto_tag": True}, "unpaired", Unpaired((HI,), (HO,), True)),
        (ALPACA | {"kto_tag": 0}, "unpaired", Unpaired((says("user", "Add.\n1 1"),), (says("assistant", "2"),), False)),
        (
            {"prompt": "a", "completions": ["b", "c"], "scores": [1, 2.5]},
            "ranking",
            Ranking("a", ("b", "c"), (1.0, 2.5)),
        ),
        (
            {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1]},
            "ranking",
            Ranking("a", ("b", "c"), (-2.0, -1.0)),
        ),
        (
            {"prompt": "Hi", "completions": [[HO], [HUM]], "ranks": "[1, 2]"},
            "ranking",
            Ranking((HI,), ((HO,), (HUM,)), (-1.0, -2.0)),
        ),
        ({"prompt": "a", "id": 5}, "prompt", Prompt("a")),
        ({"prompt": [HI]}, "prompt", Prompt((HI,))),
    ],
)
def test_each_shape_is_told_by_its_fields(row, shape, is_):
    assert shape in KNOWN and shape_of(row) == shape
    assert normalise(row) == is_


def test_columns_rename_and_reach_inside():
    row = {"question": "q", "answer": {"text": "a"}, "prompt": "the file's own"}
    assert normalise(row, {"question": "prompt", "answer.text": "completion"}) == Completion("q", "a")
    assert normalise({"messages": "plain"}, {"messages": "text"}) == Text("plain")
    assert shape_of({"prompt": "a", "completion": "b", "label": 7}, {"label": "topic"}) == "completion"
    assert normalise({"a.b": "dotted name"}, {"a.b": "text"}) == Text("dotted name")


TALK = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (TALK + " Yes, and", TALK + " Yes, but", TALK),
        (TALK + " Yes", TALK + " Yes, but", TALK),
        (TALK + " Yes", TALK, TALK),
        (TALK + " d", TALK[:-14] + "x\n\nAssistant: d", "\n\nHuman: a\n\nAssistant:"),
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nA",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nB",
            None,
        ),
        ("It is warm", "It is war", "It is"),
        ("2 + 2 = 4", "2 + 2 = 5", "2 + 2 ="),
    ],
)
def test_the_prompt_that_two_answers_share(chosen, rejected, prompt):
    found = normalise({"chosen": chosen, "rejected": rejected})
    assert found.prompt == (prompt or chosen[:-1])
    assert (found.prompt + found.chosen, found.prompt + found.rejected) == (chosen, rejected)


messages = st.lists(
    st.builds(says, st.sampled_from(["user", "assistant"]), st.sampled_from("ab")), min_size=1, max_size=4
)


@given(messages, messages, messages)
def test_an_implicit_prompt_and_the_answers_are_what_was_given(shared, one, other):
    row = {"chosen": shared + one, "rejected": shared + other}
    try:
        found = normalise(row)
    except Fault:
        assert shared[0]["role"] == "assistant"
        return
    assert found.prompt and found.chosen and found.rejected and found.prompt[-1]["role"] == "user"
    assert (found.prompt + found.chosen, found.prompt + found.rejected) == (
        tuple(row["chosen"]),
        tuple(row["rejected"]),
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"question": "a", "n": None},
            r"no known shape \(the row has: question, n; null: n\).*shapes are text \| mess.*columns question text$",
        ),
        ({"id": 3, "answer": "a", "question": "b"}, "--data.columns question prompt answer completion$"),
        ({"the text": "a", "label": "b"}, "--data.columns 'the text' prompt label completion$"),
        ({"n": 3}, r"map them \(columns\)$"),
        ({}, "the row has: nothing"),
        ({f"f{i:02}": 1 for i in range(30)}, r"f11, and 18 more\)"),
        ({"mesages": []}, r"did you mean messages\? \('mesages'\)"),
        ({"prompt": "a", "completon": "b"}, "'completon' beside 'prompt' is not known; did you mean completion"),
        ({"prompt": None, "completion": "b"}, "field 'prompt' must be a string, or a list of messages, not null"),
        ({"completion": "b"}, "field 'prompt' is missing"),
        ({"text": 3}, r"field 'text' must be a string, not int \('3'\)"),
        ({"text": "a\ud800"}, "'text' holds half a surrogate pair at character 1"),
        ({"messages": "hello"}, "'messages' must be a list, or JSON of one: Expecting value at character 1"),
        ({"messages": []}, "'messages' must be a list of objects"),
        ({"messages": ["x"]}, r"'messages'\[0\] must be an object with role and content"),
        ({"messages": [HI, {"role": "user"}]}, r"'messages'\[1\]: the field 'content' is missing"),
        ({"messages": [{"from": "human", "value": "x"}]}, r"\[0\]: the field 'role' is missing"),
        ({"messages": [says("user", [{"type": "image"}])]}, r"'content'\[0\] must be a piece of text"),
        ({"messages": [says("system", "S"), HI], "system": "T"}, "a system message in 'messages' and a field 'system'"),
        ({"messages": [HI], "tools": [3]}, "'tools' must be a list of objects"),
        ({"conversations": [{"from": "humn", "value": "x"}]}, r"\[0\]: nobody is called 'humn'; did you mean human"),
        ({"conversations": [{"from": "gpt"}]}, r"\[0\]: the field 'value' is missing"),
        ({"conversations": [{"from": "function_call", "value": "add(1)"}]}, "must be JSON with name and arguments"),
        (ALPACA | {"history": ["Hi"]}, r"'history'\[0\] must be \[question, answer\]"),
        ({"chosen": "a"}, "field 'rejected' is missing"),
        ({"chosen": "a", "rejected": [HI]}, "'chosen' is a string and 'rejected' is messages"),
        ({"chosen": "a", "rejected": "b"}, "do not begin alike"),
        ({"chosen": [HI, HO], "rejected": [AGAIN, HO]}, "do not begin alike"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "big"}, "'margin' must be a finite number"),
        ({"prompt": "a", "completion": "b", "label": "sport"}, r"'label' must be true or false.*map it to another"),
        ({"messages": [HI], "label": True}, "must end with the assistant's answer to somebody"),
        ({"prompt": "a", "completions": []}, "must be a list of answers, one at least"),
        ({"prompt": "a", "completions": ["b", "c"]}, "need 'scores', 'ranks'"),
        ({"prompt": "a", "completions": ["b", "c"], "scores": [1]}, "a list of 2 numbers"),
        ({"prompt": "a", "completions": ["b", [HO]], "ranks": [1, 2]}, "holds strings and messages"),
        (
            {"prompt": "a", "completions": ["b", "c"], "scores": [1, float("nan")]},
            "'scores'.1. must be a finite number",
        ),
        ({"prompt": "a", "completions": ["b", "c"], "votes": [2]}, r"'votes'.0. must be a number from 0 to 1, or null"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "votes": ["b"]},
            "must be 'chosen', 'rejected', a number from 0",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "votes": 3}, "a list with a vote of each person, not int"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1}, "'weight' is -1; what a row counts"),
    ],
)
def test_a_bad_row_names_its_file_line_and_field(row, said):
    with pytest.raises(Fault, match=rf"^train\.jsonl:7: .*{said}"):
        normalise(Record(row, "train.jsonl:7"))


def test_a_renamed_field_is_named_as_the_file_does():
    with pytest.raises(Fault, match=r"f\.csv:2: no field 'ansver' to be used as 'completion'; did you mean answer\?"):
        normalise(Record({"question": "a", "answer": "b"}, "f.csv:2"), {"question": "prompt", "ansver": "completion"})
    with pytest.raises(Fault, match="the field 'body' must be a string, not int"):
        normalise({"body": 3}, {"body": "text"})


def test_real_preferences_all_have_a_prompt(shared_data):
    """1,500 pairs of transcripts: the prompt ends where the assistant speaks, and nothing is lost."""
    with gzip.open(shared_data / "hh_rlhf" / "harmless.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 1500
    for row in rows:
        pair = normalise(row)
        assert isinstance(pair, Preference) and pair.prompt.endswith("\n\nAssistant:")
        assert pair.chosen != pair.rejected and pair.prompt.startswith("\n\nHuman:")
        assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (row["chosen"], row["rejected"])
        # Nothing of what both say stays behind but what begins an answer: no whole turn.
        assert "\n\nAssistant:" not in os.path.commonprefix([pair.chosen, pair.rejected])


def test_columns_of_which_the_row_has_none():
    with pytest.raises(Fault, match=r"a row: no field 'q' to be used as 'prompt', nor any.*has: text.*columns None"):
        normalise({"text": "a"}, {"q": "prompt", "a": "completion"})


def test_a_question_is_not_taken_for_a_slip_of_conversations():
    with pytest.raises(Fault) as refused:
        normalise({"question": "a", "answer": "b"})
    assert "did you mean" not in str(refused.value)


def test_votes_decide_what_is_chosen():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "votes": ["rejected", "1", 0, None]}
    found = normalise(row)
    assert isinstance(found, Preference)
    assert (found.chosen, found.rejected, found.votes, found.tied) == ("c", "b", (4, 2, 3), False)
    for votes in ([0, 1], ["tie"]):
        found = normalise(row | {"votes": votes})
        assert isinstance(found, Preference) and found.tied
    found = normalise({"prompt": "a", "completions": ["b", "c", "d"], "votes": [2, 0, 2, "tie"], "weight": 3})
    assert isinstance(found, Ranking)
    assert (found.scores, found.votes, found.weight) == ((1.0, 0.0, 2.0), (4, 2, 3), 3.0)


def test_answers_that_were_thrown_out_of_a_ranking_are_not_in_it():
    found = normalise({"prompt": "a", "completions": ["b", "c", "d"], "ranks": [1, None, 2]})
    assert found == Ranking("a", ("b", "d"), (-1.0, -2.0))
