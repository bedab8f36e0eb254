# SPDX-License-Identifier: Apache-2.0
"""Chat templates: conversations worded as a model expects them, and which of the words it is to learn to write."""

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from jaxpost.data.chat.jinja import ROLES, Jinja
from jaxpost.data.chat.turns import ADVICE, Messages, Turns
from jaxpost.data.parts import Part, prompt_of
from jaxpost.data.rows.messages import LEARNING
from jaxpost.faults import Fault, nearest

HEADS = {"system": "System:\n", "user": "User:\n", "assistant": "Assistant:\n"}
STOP = "\nUser:\n"  # where a conversation in the built-in template hands over: the sampler stops here or at the eos
UNHEARD = "drop the message, or use a template that has words for it"


@dataclass(frozen=True)
class Chat:
    """What a config may say of a model's chat template.

    `template` is a Jinja file to use instead of the model's own (or where it has none); `thinking` is handed to it as
    `enable_thinking`. `response` and `instruction`, texts or token ids, are what begins the assistant's and the other
    turns: what stands between them is trained, whatever the template marks; for one whose turns cannot be told.
    `today` (as 2025-07-31) is the date that a template writes; where it is empty, that of the day, and so other text is
    learned on another day.
    """

    template: str = ""
    thinking: bool | None = None
    response: str | tuple[int, ...] = ""
    instruction: str | tuple[int, ...] = ""
    today: str = ""


class Template(Protocol):
    """How conversations are worded. `stops` are texts at which the assistant's turn is over, besides the tokenizer's
    `ends`; a template that is the `model`'s own writes its special tokens itself."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> bool: ...
    @property
    def stops(self) -> tuple[str, ...]: ...

    def parts(
        self, messages: Messages, tools: Messages = (), since: int = 0, where: str = "messages"
    ) -> tuple[Part, ...]:
        """The conversation, what the assistant says in `messages[since:]` trained. `Fault` if that is nothing."""
        ...

    def prompt(self, messages: Messages, tools: Messages = (), where: str = "messages") -> str:
        """The conversation up to where the assistant speaks next: a beginning of what training shows."""
        ...


@dataclass(frozen=True)
class BuiltIn:
    """Each role on a line of its own, above what it says; for models that have no template.

    What the assistant says is trained, and so is the newline that ends its turn; after the last turn the tokenizer's
    eos stands in that newline's place.
    """

    name: str = "the built-in template"
    model: bool = False
    stops: tuple[str, ...] = (STOP,)

    def parts(
        self, messages: Messages, tools: Messages = (), since: int = 0, where: str = "messages"
    ) -> tuple[Part, ...]:
        if tools:
            raise Fault(f"{where}: the built-in template has no words for tools; use a model with a chat template")
        parts: list[Part] = []
        muted = muted_of(messages := checked(messages, where), where)
        for i, message in enumerate(messages):
            role, content = message["role"], message["content"]
            if role not in HEADS:
                raise Fault(f"{where}[{i}]: no role {role!r}; {nearest(role, HEADS)}")
            spoken, last = role == "assistant", i == len(messages) - 1
            learned, end = spoken and i >= since and i not in muted, "" if last and spoken else "\n"
            parts += [Part(HEADS[role], False), Part(content + end, learned, opens=spoken)]
        return tuple(parts)

    def prompt(self, messages: Messages, tools: Messages = (), where: str = "messages") -> str:
        return prompt_of(self.parts([*messages, {"role": "assistant", "content": ""}], tools, where=where))


@dataclass(frozen=True)
class ByTools:
    """Two templates of a model's, of which one is for conversations that offer tools."""

    default: "Own"
    tool_use: "Own"
    model: bool = True
    stops: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.default.name

    def configured(self, response: str = "", instruction: str = "", today: str = "", **options: Any) -> "ByTools":
        given = {"response": response, "instruction": instruction, "today": today, **options}
        return ByTools(self.default.configured(**given), self.tool_use.configured(**given))

    def parts(
        self, messages: Messages, tools: Messages = (), since: int = 0, where: str = "messages"
    ) -> tuple[Part, ...]:
        return (self.tool_use if tools else self.default).parts(messages, tools, since, where)

    def prompt(self, messages: Messages, tools: Messages = (), where: str = "messages") -> str:
        return (self.tool_use if tools else self.default).prompt(messages, tools, where)


@dataclass(frozen=True)
class Own:
    """A model's own template.

    What is trained: what stands between each `response` and the next `instruction`, the texts before the assistant's
    and before the other's words (to the end-of-turn token, if only `response` is given); if there is no `response`,
    what the template marks by `{% generation %}`; if it marks nothing, the assistant's turns as `Turns` finds them. A
    message of the assistant whose `weight` is 0, or whose `train` is false, is read only.
    """

    jinja: Jinja
    specials: tuple[str, ...] = ()
    response: str = ""
    instruction: str = ""
    model: bool = True
    stops: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.jinja.name

    @cached_property
    def turns(self) -> Turns:
        return Turns(self.jinja, self.specials)

    def configured(self, response: str = "", instruction: str = "", today: str = "", **options: Any) -> "Own":
        """The same with the texts that begin turns given, the date, and options of the template's own."""
        jinja = self.jinja
        if today or options:
            jinja = Jinja(jinja.source, self.name, jinja.variables | options, today)
        return replace(self, jinja=jinja, response=response, instruction=instruction)

    def parts(
        self, messages: Messages, tools: Messages = (), since: int = 0, where: str = "messages"
    ) -> tuple[Part, ...]:
        muted = muted_of(checked(messages, where), where)
        messages = self._checked(messages, where)
        wanted = [i for i in _spoken(messages) if i >= since]
        if not wanted:
            raise Fault(
                f"{where}: no message of the assistant to train on (the loss mask that {self.name} gives is all zeros)"
            )
        if not (wanted := [i for i in wanted if i not in muted]):
            raise Fault(
                f"{where}: nothing to train on (the loss mask is all zeros): every message of the assistant says of "
                "itself that it is not learned (weight 0, or train false)"
            )
        text, spans = self._spans(messages, tools, since, where, muted)
        if not any(trained for *_, trained in spans):
            raise Fault(
                f"{where}: {self.name} leaves nothing to train on (the loss mask is all zeros): it writes none of the "
                f"assistant's turns as spoken; keep one turn a row, or {ADVICE}"
            )
        first, *others = _cut(text, spans)
        return replace(first, unlearnt=max(0, len(wanted) - sum(trained for *_, trained in spans))), *others

    def prompt(self, messages: Messages, tools: Messages = (), where: str = "messages") -> str:
        messages = self._checked(messages, where)
        text = self.jinja.render(messages, tools, speak=True, where=where).text
        cuts: list[tuple[int, int, bool]] = []
        if any(message["role"] == "assistant" for message in messages):
            try:
                whole, spans = self._spans(messages, tools, 0, where)
                cuts = [span for span in spans if text.startswith(whole[: span[1]])]
            except Fault:  # training would have refused this conversation; speaking in it needs no mask
                pass
        return prompt_of(_cut(text, cuts))

    def _spans(
        self, messages: Messages, tools: Messages, since: int, where: str, muted: Set[int] = frozenset()
    ) -> tuple[str, list[tuple[int, int, bool]]]:
        """The rendered text, and the assistant's stretches of it: start, end, trained."""
        text, marked = self.jinja.render(messages, tools, where=where)
        self._check_all_heard(messages, tools, text, where)
        if self.response:
            return text, self._after_responses(messages, text, since, where, muted)
        if self.jinja.marks:
            start = 0
            if since:
                first = next(i for i in range(since, len(messages)) if messages[i]["role"] == "assistant")
                before = self.jinja.render(messages[:first], tools, speak=True, where=where).text
                if not text.startswith(before):
                    raise Fault(
                        f"{where}: {self.name} renders the prompt otherwise by itself than before its completion, so "
                        "that what is trained cannot be told from the prompt's turns; give the row as messages"
                    )
                start = len(before)
            spoken = _spoken(messages)
            if muted and len(spoken) != len(marked):
                raise Fault(
                    f"{where}: {self.name} marks {len(marked)} stretches as generated, and the assistant has "
                    f"{len(spoken)} messages, so that those of weight 0 cannot be told; leave the weights out"
                )
            quiet = {span for i, span in zip(spoken, marked, strict=False) if i in muted}
            return text, [(a, b, a >= start and (a, b) not in quiet) for a, b in marked]
        turns = self.turns.find(messages, tools, text, where)
        if not any(turn.end > turn.start for turn in turns):
            return text, []
        return text, [(a, b, i >= since and b > a and i not in muted) for i, a, b in turns]

    def _after_responses(
        self, messages: Messages, text: str, since: int, where: str, muted: Set[int]
    ) -> list[tuple[int, int, bool]]:
        spoken = _spoken(messages)
        starts = [found.end() for found in re.finditer(re.escape(self.response), text)]
        if len(starts) != len(spoken):
            raise Fault(
                f"{where}: the response text {self.response!r} stands {len(starts)} times in what {self.name} renders, "
                f"and the assistant has {len(spoken)} turns; give the text that begins each of them and nothing else"
            )
        spans = []
        for i, start, limit in zip(spoken, starts, [*starts[1:], len(text)], strict=True):
            end = text.find(self.instruction, start, limit) if self.instruction else -1
            if not self.instruction and (special := self.turns.ending(text, start, limit)):
                end = special
            spans.append((start, limit if end < 0 else end, i >= since and i not in muted))
        return spans

    def _check_all_heard(self, messages: Messages, tools: Messages, text: str, where: str) -> None:
        """A template may rewrite what it is given; what it leaves out whole was not meant for it."""
        for i, tool in enumerate(tools):
            offered = tool.get("function", tool)
            named = offered.get("name") if isinstance(offered, Mapping) else None
            if "tools" not in self.jinja.source or (named and str(named) not in text):
                raise Fault(
                    f"{where}: {self.name} leaves out the tool {str(named or i)!r}; drop the row's tools, or use a "
                    "template that has words for them"
                )
        at = 0
        for i, message in enumerate(messages):
            said = message["content"].strip()
            at = max(at, text.find(said, at))  # most follow each other, so that most are found at once
            for call in message.get("tool_calls") or ():
                called = call.get("function", call) if isinstance(call, Mapping) else None
                named = called.get("name") if isinstance(called, Mapping) else None
                if named and str(named) not in text:
                    raise Fault(f"{where}[{i}]: {self.name} leaves out the tool call {named!r}; {UNHEARD}")
            if message["role"] == "assistant" or text.startswith(said, at) or said in text:
                continue
            if any(json.dumps(said, ensure_ascii=ascii)[1:-1] in text for ascii in (False, True)):
                continue  # written by `tojson`, as what tools answer often is
            try:
                without = self.jinja.render([*messages[:i], *messages[i + 1 :]], tools, where=where).text
            except Fault:
                continue
            if without == text:
                raise Fault(f"{where}[{i}]: {self.name} leaves out what the {message['role']} says; {UNHEARD}")

    def _checked(self, messages: Messages, where: str) -> Sequence[dict[str, Any]]:
        found = checked(messages, where)
        for i, message in enumerate(found):
            role = message["role"]
            if role not in ROLES and f"'{role}'" not in self.jinja.source and f'"{role}"' not in self.jinja.source:
                raise Fault(f"{where}[{i}]: no role {role!r}; {nearest(role, ROLES)}")
        return [{name: value for name, value in message.items() if name not in LEARNING} for message in found]


def _spoken(messages: Messages) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def muted_of(messages: Messages, where: str) -> Set[int]:
    """The assistant's messages that say of themselves that they are not learned, only read."""
    muted = set()
    for i in _spoken(messages):
        for name in LEARNING:
            if (value := messages[i].get(name)) is None:
                continue
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                raise Fault(f"{where}[{i}]: the field {name!r} must be 0 or 1 (or false or true), not {value!r}")
            if not value:
                muted.add(i)
    return muted


def checked(messages: Any, where: str) -> Sequence[dict[str, Any]]:
    """Messages of a role and text each. Text in pieces (`{"type": "text", "text": ...}`) is put together."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Fault(f"{where} must be a list of objects with role and content, one at least")
    found = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise Fault(f"{where}[{i}] must be an object with role and content")
        content = message.get("content")
        if isinstance(content, (list, tuple)) and all(_is_text(piece) for piece in content):
            content = "".join(piece["text"] for piece in content)
        if content is None and message.get("tool_calls"):
            content = ""
        if not isinstance(content, str):
            raise Fault(
                f"{where}[{i}]: the content must be a string (or pieces of text), not "
                f"{'null' if content is None else type(content).__name__}"
            )
        found.append({**message, "content": content})
    return found


def _is_text(piece: Any) -> bool:
    return isinstance(piece, Mapping) and piece.get("type") == "text" and isinstance(piece.get("text"), str)


def _cut(text: str, spans: Sequence[tuple[int, int, bool]]) -> tuple[Part, ...]:
    parts, at = [], 0
    for start, end, trained in spans:
        if start > at:
            parts.append(Part(text[at:start], False, whole=True))
        parts.append(Part(text[start:end], trained, opens=True, whole=True))
        at = max(at, end)
    return (*parts, Part(text[at:], False, whole=True)) if at < len(text) else tuple(parts)
