# SPDX-License-Identifier: Apache-2.0
import pytest

from jaxpost.data.parts import joined
from jaxpost.data.sources import Record
from jaxpost.data.tasks import Example
from jaxpost.data.text import STOP, Part, as_prompt, chat_prompt, pair_of, parts_of
from jaxpost.faults import Fault

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ciao"},
]


def test_each_shape_is_told_by_its_fields():
    assert parts_of({"text": "abc", "id": 3}) == (Part("abc", True),)
    assert parts_of({"prompt": "a\n", "completion": "b"}) == (Part("a\n", False), Part("b", True))
    assert parts_of(Example("a\n", "b")) == (Part("a\n", False), Part("b", True))
    assert parts_of({"messages": TURNS, "text": "ignored"})[-1] == Part("Ciao", True)


def test_columns_rename_a_files_fields():
    row = {"question": "1+1?\n", "answer": "2", "prompt": "the file's own"}
    assert parts_of(row, {"question": "prompt", "answer": "completion"}) == (Part("1+1?\n", False), Part("2", True))


def test_a_renamed_column_is_gone_under_its_old_name():
    assert parts_of({"messages": "plain"}, {"messages": "text"}) == (Part("plain", True),)


@pytest.mark.parametrize(
    ("prompt", "completion", "wanted"),
    [("in May?", "She", "in May?\n"), ("a\n", "b", "a\n"), ("a ", "b", "a "), ("a", " b", "a"), ("", "b", "")],
)
def test_a_prompt_is_set_apart_from_its_completion(prompt, completion, wanted):
    assert as_prompt(prompt, completion) == wanted


def test_only_what_the_assistant_says_is_trained():
    parts = parts_of({"messages": TURNS})
    assert "".join(part.text for part in parts if part.trained) == "Hello\nCiao"
    assert "".join(part.text for part in parts) == (
        "System:\nBe brief.\nUser:\nHi\nAssistant:\nHello\nUser:\nBye\nAssistant:\nCiao"
    )


def test_a_chat_prompt_is_a_prefix_of_the_conversation_in_training():
    whole = "".join(part.text for part in parts_of({"messages": TURNS}))
    for turns in (2, 4):
        prompt = chat_prompt(TURNS[:turns])
        assert whole.startswith(prompt + TURNS[turns]["content"])
    assert whole[len(chat_prompt(TURNS[:2])) :].startswith("Hello" + STOP)


def test_of_messages_as_prompt_and_completion_only_the_completion_is_trained():
    parts = parts_of({"prompt": TURNS[:4], "completion": TURNS[4:]})
    assert joined(parts) == joined(parts_of({"messages": TURNS}))
    assert [part.text for part in parts if part.trained] == ["Ciao"]


@pytest.mark.parametrize(
    ("row", "before", "answers"),
    [
        ({"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}, "Is it?\n", ("Yes.", "No.")),
        ({"prompt": "Is it?", "chosen": " Yes.", "rejected": "No."}, "Is it?\n", (" Yes.", "No.")),
        ({"chosen": "Human: is it?\nYes.", "rejected": "Human: is it?\nNo."}, "Human: is it?", ("\nYes.", "\nNo.")),
        ({"prompt": "a", "chosen": " b", "rejected": " c"}, "a", (" b", " c")),
        (
            {"prompt": TURNS[:2], "chosen": TURNS[2:3], "rejected": [{"role": "assistant", "content": "What?"}]},
            chat_prompt(TURNS[:2]),
            ("Hello", "What?"),
        ),
    ],
)
def test_both_answers_of_a_pair_stand_behind_one_prompt(row, before, answers):
    for parts, answer in zip(pair_of(row), answers, strict=True):
        assert joined([part for part in parts if not part.trained]) == before
        assert parts[-1] == Part(answer, True) and joined(parts) == before + answer


def test_no_pair_and_a_pair_where_none_is_wanted():
    with pytest.raises(Fault, match="f:1: no preference: a row needs the fields chosen and rejected"):
        pair_of(Record({"text": "a"}, "f:1"))
    with pytest.raises(Fault, match=r"f:1: a preference .* and this run learns from text.*\(reward, dpo\) learn"):
        parts_of(Record({"prompt": "a", "chosen": "b", "rejected": "c"}, "f:1"))
    with pytest.raises(Fault, match=r"f:1: an answer with a label.*kto"):
        parts_of(Record({"prompt": "a", "completion": "b", "label": True}, "f:1"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "a"}, r"a row of no known shape \(the row has: question\)"),
        ({}, "the row has: nothing"),
        ({"prompt": "a"}, "a prompt alone"),
        ({"prompt": "a", "completon": "b"}, "did you mean completion"),
        ({"prompt": None, "completion": "b"}, "the field 'prompt' must be a string"),
        ({"text": 3}, r"field 'text' must be a string, not int \('3'\)"),
        ({"text": "a\ud800"}, "'text' holds half a surrogate pair at character 1"),
        ({"messages": "hello"}, "'messages' must be a list"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": ["hello"]}, r"'messages'\[0\] must be an object"),
        ({"messages": [*TURNS, {"role": "user"}]}, r"'messages'\[5\]: the field 'content' is missing"),
        (
            {"messages": [{"role": "asistant", "content": "x"}]},
            r"messages\[0\]: no role 'asistant'; did you mean a",
        ),
        ({"messages": TURNS, "tools": [{"name": "f"}]}, "the built-in template has no words for tools"),
    ],
)
def test_a_bad_row_names_its_file_line_and_field(row, says):
    with pytest.raises(Fault, match=rf"^train\.jsonl:7: .*{says}"):
        parts_of(Record(row, "train.jsonl:7"))


def test_a_column_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(Fault, match=r"f\.csv:2: no field 'ansver' to be used as 'completion'; did you mean answer\?"):
        parts_of(Record({"question": "a", "answer": "b"}, "f.csv:2"), {"question": "prompt", "ansver": "completion"})
