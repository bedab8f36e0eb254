# SPDX-License-Identifier: Apache-2.0
"""Messages of a dialogue as files write them, brought to one form: mappings with a role and what it says."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpost.data.rows.fields import checked_string, kind_of
from jaxpost.faults import Fault, nearest

Message = Mapping[str, Any]
LEARNING = ("weight", "train")  # what a message of the assistant says of itself: 0 or false if it is only read

# Who speaks in a sharegpt conversation. A function_call is the assistant's, an observation what the tool answered.
SPEAKERS = {
    **{name: "user" for name in ("human", "user")},
    **{name: "assistant" for name in ("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call")},
    **{name: "tool" for name in ("observation", "tool", "function_response")},
    "system": "system",
}


def messages(value: Any, where: str) -> tuple[Message, ...]:
    """A list of objects with role and content. Keys that hold null, which files of columns write, are left out."""
    value = across(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Fault(f"{where} must be a list of objects with role and content, one at least, not {kind_of(value)}")
    return tuple(_message(one, f"{where}[{i}]") for i, one in enumerate(value))


def across(value: Any) -> Any:
    """A list of objects that is stored as an object of lists, as TFDS and older Hugging Face data sets do; else the
    value itself."""
    lists = list(value.values()) if isinstance(value, Mapping) else []
    if not lists or not all(isinstance(each, list) and len(each) == len(lists[0]) for each in lists):
        return value
    if not {"role", "from"} & value.keys():
        return value
    return [dict(zip(value, turn, strict=True)) for turn in zip(*lists, strict=True)]


def one_or_more(value: Any, where: str) -> tuple[Message, ...]:
    """Messages, one message by itself, or either of them in sharegpt's words."""
    value = across(value)
    listed = [value] if isinstance(value, Mapping) else value
    if isinstance(listed, Sequence) and listed and isinstance(listed[0], Mapping) and "role" not in listed[0]:
        if "from" in listed[0]:
            return from_sharegpt(listed, where)
    if isinstance(value, Mapping):
        return (_message(value, where),)
    if not isinstance(value, Sequence) or not value:
        raise Fault(f"{where} must be a string, or a list of messages, not {kind_of(value)}")
    return messages(value, where)


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise Fault(f"{where} must be an object with role and content, not {kind_of(value)}")
    kept = {name: part for name, part in value.items() if part is not None}
    if "role" not in kept:
        raise Fault(f"{where}: the field 'role' is missing; {nearest('role', map(str, value))}")
    checked_string(kept["role"], f"{where}: the field 'role'")
    if kept.get("tool_calls"):
        kept["tool_calls"] = _tool_calls(kept["tool_calls"], f"{where}: the field 'tool_calls'")
    if "content" not in kept and kept.get("tool_calls"):
        return kept | {"content": ""}
    if "content" not in kept:
        if "content" in value:
            raise Fault(f"{where}: the field 'content' must be a string, not null")
        raise Fault(f"{where}: the field 'content' is missing; {nearest('content', map(str, value))}")
    return kept | {"content": _content(kept["content"], f"{where}: the field 'content'")}


def _content(value: Any, where: str) -> str:
    """Text, or text in pieces as multi-modal data writes it."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return checked_string(value, where)
    pieces = []
    for i, piece in enumerate(value):
        if not isinstance(piece, Mapping) or piece.get("type", "text") != "text" or "text" not in piece:
            raise Fault(f"{where}[{i}] must be a piece of text ({{'type': 'text', 'text': ...}}), not {kind_of(piece)}")
        pieces.append(checked_string(piece["text"], f"{where}[{i}]"))
    return "".join(pieces)


def from_sharegpt(value: Any, where: str) -> tuple[Message, ...]:
    """A sharegpt conversation: objects with `from` and `value` (or with role and content after all)."""
    value = across(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Fault(f"{where} must be a list of objects with from and value, one at least, not {kind_of(value)}")
    return tuple(_said(one, f"{where}[{i}]") for i, one in enumerate(value))


def _said(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Fault(f"{where} must be an object with from and value, not {kind_of(turn)}")
    if turn.get("role") is not None:
        return _message(turn, where)
    for name in ("from", "value"):
        if name not in turn:
            raise Fault(f"{where}: the field {name!r} is missing; {nearest(name, map(str, turn))}")
    speaker = checked_string(turn["from"], f"{where}: the field 'from'")
    content = checked_string(turn["value"], f"{where}: the field 'value'")
    if speaker not in SPEAKERS:
        raise Fault(f"{where}: nobody is called {speaker!r}; {nearest(speaker, SPEAKERS)}")
    kept = {name: turn[name] for name in LEARNING if turn.get(name) is not None}
    if speaker != "function_call":
        return {"role": SPEAKERS[speaker], "content": content} | kept
    return {**kept, "role": "assistant", "content": "", "tool_calls": _calls(content, f"{where}: the field 'value'")}


def _calls(content: str, where: str) -> list[dict[str, Any]]:
    """The calls that a function_call makes: JSON of a name and arguments, or a list of such."""
    try:
        found = json.loads(content)
    except json.JSONDecodeError as error:
        raise Fault(
            f"{where} of a function_call must be JSON with name and arguments: {error.msg} at character {error.pos + 1}"
        ) from None
    calls = found if isinstance(found, list) else [found]
    for call in calls:
        if not isinstance(call, dict) or "name" not in call:
            raise Fault(f"{where} of a function_call must be JSON with name and arguments, not {kind_of(call)}")
    return [
        {"type": "function", "function": _called({**call, "arguments": call.get("arguments")}, where)} for call in calls
    ]


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as templates expect them: the arguments are an object, also where files write JSON of one, as OpenAI's do.
    A template that writes them as JSON would encode such a string a second time."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Fault(f"{where} must be a list of objects with a function, not {kind_of(value)}")
    calls = []
    for i, call in enumerate(value):
        if not isinstance(call, Mapping):
            raise Fault(f"{where}[{i}] must be an object with a function, not {kind_of(call)}")
        if call.get("function") is None:
            bare = {name: part for name, part in call.items() if name != "function"}
            calls.append(_called(bare, f"{where}[{i}]"))
        elif isinstance(call["function"], Mapping):
            calls.append({**call, "function": _called(call["function"], f"{where}[{i}].function")})
        else:
            raise Fault(
                f"{where}[{i}].function must be an object with name and arguments, not {kind_of(call['function'])}"
            )
    return calls


def _called(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call's name and its arguments, of which there may be none."""
    if call.get("name") is None:
        raise Fault(f"{where}: the field 'name' is missing; {nearest('name', map(str, call))}")
    checked_string(call["name"], f"{where}: the field 'name'")
    given = call.get("arguments")
    arguments = {} if given is None or given == "" else given
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            wrong = f"{error.msg} at character {error.pos + 1}"
            raise Fault(f"{where}: the field 'arguments' must be an object or JSON of one: {wrong}") from None
    if not isinstance(arguments, Mapping):
        written = ", and it is JSON of something else" if isinstance(given, str) else f", not {kind_of(arguments)}"
        raise Fault(f"{where}: the field 'arguments' must be an object or JSON of one{written}")
    return {**call, "arguments": arguments}


def tools_of(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The functions offered: a list of JSON schemas, each an object or JSON of one."""
    if value is None:
        return ()
    try:
        read = [json.loads(tool) if isinstance(tool, str) else tool for tool in value]
    except (TypeError, json.JSONDecodeError):
        read = [value]
    for tool in read:
        if not isinstance(tool, Mapping):
            raise Fault(f"{where} must be a list of objects that describe a function each, not {kind_of(tool)}")
    return tuple(read)


def split_answer(said: tuple[Message, ...], where: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """A dialogue as prompt and answer: what the assistant says last."""
    *before, last = said
    if not before or last["role"] != "assistant":
        raise Fault(f"{where}: a labelled dialogue must end with the assistant's answer to somebody")
    return tuple(before), (last,)
