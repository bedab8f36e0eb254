# SPDX-License-Identifier: Apache-2.0
"""Prompts that are sampled from are what training shows before an answer; their stream is ordered, and fits."""

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data.chat.jinja import Jinja
from jaxpost.data.chat.template import Own
from jaxpost.data.rows import shapes
from jaxpost.data.tasks import Example
from jaxpost.data.text import answered, parts_of
from jaxpost.data.tokenizers import SentencePieceTokenizer, Virtual, tokenise, with_virtual
from jaxpost.faults import Fault
from jaxpost.recipes.rollouts.prompts import HOPELESS, Prompts, request
from tests.conftest import ROOT
from tests.end_to_end.runs import TOKENIZER

WORDS = SentencePieceTokenizer.load(TOKENIZER)
TALK = [{"role": "user", "content": "Is it May?"}, {"role": "assistant", "content": "No."}]
MORE = [*TALK, {"role": "user", "content": "Was it?"}, {"role": "assistant", "content": "Yes."}]
TOOL = {"type": "function", "function": {"name": "today", "description": "The date.", "parameters": {}}}
TUNED = {
    "example": (Example("What is 2 plus 3?\n", "5"), "5"),
    "strings": ({"prompt": "What is 2 plus 3?", "completion": "5"}, "5"),
    "an answer set apart": ({"prompt": "What is 2 plus 3?", "completion": " 5"}, " 5"),
    "a prompt set apart": ({"prompt": "What is 2 plus 3? ", "completion": "5"}, "5"),
    "with a system": ({"system": "Be brief.", "prompt": "Is it May?", "completion": "No."}, "No."),
    "prompt messages": ({"prompt": TALK[:1], "completion": TALK[1:]}, "No."),
    "messages": ({"messages": TALK}, "No."),
    "more messages": ({"messages": MORE}, "Yes."),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]}, "Ho."),
    "alpaca": ({"instruction": "Add.", "input": "2, 3", "output": "5", "history": [["Who?", "I."]]}, "5"),
}
COMPARED = {
    "preference": {"prompt": "Is it May?", "chosen": "No.", "rejected": "Yes."},
    "preference set apart": {"prompt": "Is it May?", "chosen": " No.", "rejected": " Yes."},
    "preference half set apart": {"prompt": "Is it May?", "chosen": " No.", "rejected": "Yes."},
    "preference of messages": {"chosen": TALK, "rejected": [TALK[0], {"role": "assistant", "content": "Yes."}]},
    "unpaired": {"prompt": "Is it May?", "completion": "No.", "label": True},
    "unpaired set apart": {"prompt": "Is it May?", "completion": " No.", "label": True},
    "ranking": {"prompt": "Is it May?", "completions": ["No.", "Yes."], "scores": [1, 0]},
}


class Spoken(SentencePieceTokenizer):
    """The tokenizer as if its model had a chat template."""

    template: Any = None


def spoken(name):
    made = copy.copy(WORDS)
    made.__class__ = Spoken
    source = (ROOT / "tests" / "golden" / "chat" / f"{name}.jinja").read_text("utf-8")
    made.template = Own(Jinja(source, name))
    return made


def read_before_the_answer(tokenizer, row):
    """The tokens of a training example before the first that its last answer has."""
    tokens = tokenise(tokenizer, parts_of(row, template=tokenizer.template))
    last = np.flatnonzero(np.diff(tokens.trained.astype(int)) == 1)[-1]
    return tokens.ids[: last + 1].tolist()


@pytest.mark.parametrize("virtual", [Virtual(), Virtual(2), Virtual(2, "between")], ids=["", "before", "between"])
@pytest.mark.parametrize("name", TUNED)
def test_the_prompt_is_what_training_shows(name, virtual):
    row, answer = TUNED[name]
    tokenizer = with_virtual(WORDS, virtual)
    found = request(row, tokenizer)
    assert list(found.ids) == read_before_the_answer(tokenizer, row)
    assert found.row["answer"] == answer and found.row["prompt"] == found.text
    assert tokenizer.decode([i for i in found.ids if i >= 0]).strip() == found.text.strip()


@pytest.mark.parametrize("name", COMPARED)
def test_what_is_compared_has_the_prompt_of_its_answers_and_no_answer(name):
    row, said = COMPARED[name], shapes.normalise(COMPARED[name])
    found = request(row, WORDS)
    assert "answer" not in found.row
    answers = said.completions if isinstance(said, shapes.Ranking) else ()
    answers = (said.chosen, said.rejected) if isinstance(said, shapes.Preference) else answers or (said.completion,)
    if name != "preference half set apart":
        for answer in answers:
            read, *_ = answered(said.prompt, answer, WORDS.template, "a row")
            whole = tokenise(WORDS, answered(said.prompt, answer, WORDS.template, "a row")).ids.tolist()
            assert whole[: len(found.ids)] == list(found.ids) and found.text.startswith(read.text)
    else:
        assert found.text == "Is it May?\n"


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_a_models_own_template_and_its_tools(name):
    tokenizer = spoken(name)
    row = {"messages": MORE} if name == "chatml" else {"messages": TALK, "tools": [TOOL]}
    found = request(row, tokenizer)
    assert list(found.ids) == read_before_the_answer(tokenizer, row)
    assert name == "chatml" or "today" in found.text, "what may be called is said"


def test_a_prompt_alone_and_renamed_fields():
    assert request({"prompt": "Is it?", "key": 3}, WORDS).row == {"prompt": "Is it?\n", "key": 3}
    asked = request({"messages": TALK[:1]}, WORDS)
    assert asked.text.endswith("Assistant:\n") and "answer" not in asked.row
    found = request({"question": "Why?", "solution": "So.", "answer": "Because."}, WORDS,
                    {"question": "prompt", "solution": "completion"})  # fmt: skip
    assert found.text == "Why?\n" and found.row["answer"] == "Because.", "the row's own field stays"
    with pytest.raises(Fault, match="a row without a prompt, and this run samples answers to prompts"):
        request({"text": "Once upon a time."}, WORDS)


# --- the stream

ROWS = [{"prompt": f"{'very ' * (4 * (i % 5 == 4))}{i}?", "answer": str(i)} for i in range(10)]
LENGTHS = [len(request(row, WORDS).ids) for row in ROWS]
ROOM = sorted(LENGTHS)[7]
LONG = {str(i) for i, length in enumerate(LENGTHS) if length > ROOM}
assert len(LONG) == 2


def stream(overlong="drop", seed: int | None = 3, rows=ROWS):
    return Prompts(rows, WORDS, None, ROOM, overlong, seed)


def test_every_pass_has_every_prompt_once_in_another_order():
    prompts = stream()
    passes = [[prompts.next().row["answer"] for _ in range(8)] for _ in range(3)]
    assert all(set(one) == {str(i) for i in range(10)} - LONG for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert prompts.counts["left out"] in (4, 5, 6) and prompts.counts["truncated"] == 0
    other = stream(seed=4)
    assert [other.next().row["answer"] for _ in range(8)] != passes[0]


def test_without_a_seed_they_come_once_as_they_lie():
    prompts = stream(seed=None)
    assert [found.row["answer"] for found in prompts] == [str(i) for i in range(10) if str(i) not in LONG]
    assert prompts.counts == {"read": 10, "left out": 2, "truncated": 0}
    with pytest.raises(StopIteration):
        prompts.next()


def test_what_is_too_long_loses_its_beginning():
    prompts = stream("truncate", seed=None)
    found = {one.row["answer"]: one for one in prompts}
    assert len(found) == 10 and prompts.counts == {"read": 10, "left out": 0, "truncated": 2}
    for number in LONG:
        whole = request(ROWS[int(number)], WORDS).ids
        assert found[number].ids == (whole[0], *whole[len(whole) - ROOM + 1 :]), "all but its bos"
        assert "very" in found[number].row["prompt"], "a reward sees all of it"


def test_or_is_an_error_that_says_what_to_do():
    with pytest.raises(Fault, match=rf"a prompt of \d+ tokens, where rollout.prompt_tokens allows {ROOM}; raise it"):
        list(stream("error", seed=None))


def test_prompts_none_of_which_fits():
    rows = [{"prompt": "so " * 40}]
    with pytest.raises(Fault, match=f"the last {HOPELESS} prompts were all longer than rollout.prompt_tokens, {ROOM}"):
        stream(rows=rows).next()
    assert list(stream(rows=rows, seed=None)) == [], "held out, there are simply none"


def test_no_prompts_and_no_room():
    with pytest.raises(Fault, match="there is no prompt: the data set is empty"):
        stream(rows=[])
    with pytest.raises(Fault, match="rollout.prompt_tokens is 4, and 4 of them are the places of a learned prompt"):
        Prompts(ROWS, with_virtual(WORDS, Virtual(4)), None, 4)


@given(st.integers(0, 25), st.sampled_from(["drop", "truncate"]))
@settings(max_examples=15)
def test_it_goes_on_where_it_was(taken, overlong):
    one, other = stream(overlong), stream(overlong)
    for _ in range(taken):
        one.next()
    other.restore(json.loads(json.dumps(one.save())))
    assert [one.next() for _ in range(5)] == [other.next() for _ in range(5)]
    assert one.counts == other.counts
