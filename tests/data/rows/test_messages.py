# SPDX-License-Identifier: Apache-2.0
"""Calls of tools, however a file writes them, and what a message says of itself."""

import pytest

from jaxpost.data.rows.messages import from_sharegpt, messages
from jaxpost.faults import Fault
from tests.data.chat.test_template import own, trained


def said(call):
    return [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', ' {"city":"Oslo"}\n', {"city": "Oslo"}])
def test_arguments_written_as_json_are_what_the_json_says(arguments):
    wanted = {"name": "look", "arguments": {"city": "Oslo"}}
    call = {"name": "look", "arguments": arguments}
    full = messages(said({"id": "1", "type": "function", "function": call}), "f")
    assert full[1]["tool_calls"] == [{"id": "1", "type": "function", "function": wanted}]
    assert messages(said(call), "f")[1]["tool_calls"] == [wanted]
    # A template that writes arguments as JSON does it once.
    call_of = "{% for call in message.tool_calls or [] %}{{ call.function.name ~ (call.function.arguments | tojson) }}"
    source = "{% for message in messages %}{{ message.role ~ ':' ~ message.content }}CALL{% endfor %}\n{% endfor %}"
    template = own("chatml", source.replace("CALL", call_of))
    assert trained(template, full) == ['assistant:look{"city": "Oslo"}']


@pytest.mark.parametrize("none", [{}, {"arguments": None}, {"arguments": ""}, {"arguments": "{}"}])
def test_a_call_without_arguments(none):
    assert messages(said({"function": {"name": "look", **none}}), "f")[1]["tool_calls"][0]["function"] == {
        "name": "look",
        "arguments": {},
    }


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("look", r"\[0\] must be an object with a function, not str"),
        ({"function": "look"}, r"\[0\].function must be an object with name and arguments, not str"),
        ({"function": {"nam": "look"}}, r"\[0\].function: the field 'name' is missing; did you mean nam"),
        ({"name": 3}, r"\[0\]: the field 'name' must be a string, not int"),
        ({"name": "look", "arguments": "{Oslo"}, r"\[0\]: the field 'arguments' must be .* JSON of one: Expecting.* 2"),
        ({"name": "look", "arguments": "[1]"}, r"\[0\]: the field 'arguments' .* and it is JSON of something else"),
        (
            {"name": "look", "arguments": [1]},
            r"\[0\]: the field 'arguments' must be an object or JSON of one, not list",
        ),
    ],
)
def test_calls_that_are_wrong_name_their_place(call, says):
    with pytest.raises(Fault, match=rf"^f\[1\]: the field 'tool_calls'{says}"):
        messages(said(call), "f")


def test_calls_that_are_no_list():
    with pytest.raises(
        Fault, match=r"f\[1\]: the field 'tool_calls' must be a list of objects with a function, not str"
    ):
        messages([said({})[0], {"role": "assistant", "tool_calls": "look"}], "f")


def test_sharegpt_keeps_what_a_turn_says_of_itself():
    call = {"from": "function_call", "value": '{"name": "f", "arguments": "{\\"a\\": 1}"}', "train": False}
    read = from_sharegpt([{"from": "gpt", "value": "x", "weight": 0, "id": 3}, call], "f")
    assert read[0] == {"role": "assistant", "content": "x", "weight": 0}
    assert read[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}} and read[1]["train"] is False
