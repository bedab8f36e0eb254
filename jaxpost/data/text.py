# SPDX-License-Identifier: Apache-2.0
"""Rows of the common shapes, rendered to text of which some parts are trained and the rest is only read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpost.data.tasks import Example, Row
from jaxpost.faults import Fault, nearest

SHAPES = (("messages",), ("prompt", "completion"), ("text",))
HEADS = {"system": "System:\n", "user": "User:\n", "assistant": "Assistant:\n"}
STOP = "\nUser:\n"  # where a conversation in the built-in template hands over: the sampler stops here or at the eos


@dataclass(frozen=True)
class Part:
    """A stretch of an example's text, and whether the model is to learn to write it."""

    text: str
    trained: bool


def parts_of(row: Row | Example, columns: Mapping[str, str] | None = None) -> tuple[Part, ...]:
    """What one row says, cut where training starts and stops.

    A row is an `Example`, or has one of three shapes, told apart by its fields: `messages` (a list of role and
    content, worded by the built-in template), `prompt` and `completion`, or `text`. Other fields are ignored.
    `columns` renames a file's fields to those, e.g. `{"question": "prompt", "answer": "completion"}`.
    """
    if isinstance(row, Example):
        return Part(row.prompt, False), Part(row.target, True)
    where = place(row)
    fields = _renamed(row, columns, where) if columns else row
    shape = next((shape for shape in SHAPES if shape[0] in fields), None)
    if shape is None:
        raise Fault(
            f"{where}: no field 'text', no 'prompt' with 'completion' and no 'messages' (the row has: "
            f"{', '.join(map(str, fields)) or 'nothing'}); name its columns after those, or map them"
        )
    if shape == ("messages",):
        return conversation(fields["messages"], where)
    theirs = {ours: name for name, ours in (columns or {}).items()}
    if shape == ("text",):
        return (Part(_string(fields, "text", where, theirs), True),)
    completion = _string(fields, "completion", where, theirs)
    return Part(as_prompt(_string(fields, "prompt", where, theirs), completion), False), Part(completion, True)


def as_prompt(prompt: str, completion: str = "") -> str:
    """The prompt, ended by a newline unless white space already separates it from its completion.

    Without it "in May?" and "She sold" would share a token, and the prompt alone, which is what the sampler sees,
    would be tokenised differently from the prompt in training.
    """
    apart = not prompt or prompt[-1].isspace() or completion[:1].isspace()
    return prompt if apart else prompt + "\n"


def conversation(messages: Any, where: str = "messages") -> tuple[Part, ...]:
    """The built-in chat template: each role on a line of its own, above what it says.

    What the assistant says is trained, and so is the newline that ends its turn; after the last turn the tokenizer's
    eos stands in that newline's place.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Fault(f"{where}: field 'messages' must be a list of objects with role and content, one at least")
    parts: list[Part] = []
    for i, message in enumerate(messages):
        at = f"{where}: messages[{i}]"
        if not isinstance(message, Mapping):
            raise Fault(f"{at} must be an object with role and content, not {_kind(message)}")
        role, content = _string(message, "role", at), _string(message, "content", at)
        if role not in HEADS:
            raise Fault(f"{at}: no role {role!r}; {nearest(role, HEADS)}")
        trained, last = role == "assistant", i == len(messages) - 1
        end = "" if last and trained else "\n"
        parts += [Part(HEADS[role], False), Part(content + end, trained)]
    return tuple(parts)


def chat_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a conversation up to where the assistant speaks next: a prefix of what training shows."""
    closed = [*messages, {"role": "assistant", "content": ""}]
    return "".join(part.text for part in conversation(closed))


def place(row: Any) -> str:
    """Where a row is from, for messages: `file:line` if its source says so."""
    if isinstance(row, Example):
        return f"task {row.task or '(unnamed)'}"
    return getattr(row, "where", "a row")


def _renamed(row: Row, columns: Mapping[str, str], where: str) -> dict[str, Any]:
    for name in columns:
        if name not in row:
            raise Fault(f"{where}: no field {name!r} to be used as {columns[name]!r}; {nearest(name, row)}")
    kept = {name: value for name, value in row.items() if name not in columns}
    return kept | {ours: row[theirs] for theirs, ours in columns.items()}


def _string(fields: Mapping[str, Any], name: str, where: str, theirs: Mapping[str, str] | None = None) -> str:
    """A field that must be text; `theirs` are the names that the file has for ours."""
    if name not in fields:
        raise Fault(f"{where}: the field {name!r} is missing; {nearest(name, map(str, fields))}")
    value, name = fields[name], (theirs or {}).get(name, name)
    if not isinstance(value, str):
        raise Fault(f"{where}: the field {name!r} must be a string, not {_kind(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Fault(
                f"{where}: the field {name!r} holds half a surrogate pair at character {error.start}, which is no text"
            ) from None
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} ({str(value)[:40]!r})"
