# SPDX-License-Identifier: Apache-2.0
"""Where the assistant speaks in a rendered conversation, found by rendering again.

The rule: the assistant's turn begins where the prompt ends that a sampler would see at that point (the conversation so
far, rendered up to where the assistant speaks), and ends with its end-of-turn token. Nothing is guessed from words: a
turn counts if the conversation up to it, rendered by itself, is the beginning of the whole.

A template may rewrite earlier turns once later ones follow (Qwen3 drops their thinking). Such a turn does not read as
it was spoken; it is context, and is not trained. A turn after the last question is part of the answer that is being
given: there, what a template writes only around the turn it ends with (an empty block of thoughts) is not missed where
others follow, and the turn is what the whole conversation shows of it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jaxpost.data.chat.jinja import REASONING, Jinja
from jaxpost.faults import Fault

Messages = Sequence[Mapping[str, Any]]
FEW = 3  # up to so many turns of the assistant, rendering every prefix is as fast as the one pass over all
WORDS = ("qaz", "wsx", "edc", "rfv")  # a conversation from which a template's ways are learnt
MARK = "qzjxw"  # stands where words of a message begin
ANSWER = "<tool_response>"  # what a user's message begins with that is the answer of a tool
ADVICE = "put {% generation %} and {% endgeneration %} around what it writes for the assistant, or give a response text"


class Turn(NamedTuple):
    """What `messages[index]` wrote: the characters from start to end. Empty if it reads otherwise than spoken."""

    index: int
    start: int
    end: int


class _Shape(NamedTuple):
    """What stands around the assistant's words in any conversation: the end of the prompt, what the turn writes before
    them, and what after, as far as it is the turn's."""

    opening: str
    lead: str
    tail: str


class Turns:
    """The finder for one template. `specials` are the tokenizer's special tokens, as text."""

    def __init__(self, jinja: Jinja, specials: Sequence[str]):
        self._jinja = jinja
        either = "|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True) if token)
        self._special = re.compile(either or "(?!)")
        self._run = re.compile(rf"(?:(?:{either or '(?!)'})\s*)+\Z")

    def find(self, messages: Messages, tools: Messages, text: str, where: str) -> list[Turn]:
        """The assistant's turns in `text`, which is the conversation rendered."""
        spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if self._forgets:
            asked = _asked(messages)
            spoken = [i for i in spoken if i > asked] or spoken[-1:]
        turns = self._by_words(messages, tools, text, spoken, where) if len(spoken) > FEW else None
        return self._by_prefixes(messages, tools, text, spoken, where) if turns is None else turns

    @cached_property
    def stop(self) -> str:
        """The special token with which a turn in the middle of a conversation ends, if it does with one."""
        found = self._special.findall(self._shape.tail) if self._shape else []
        return found[-1] if found else ""

    def ending(self, text: str, start: int, limit: int) -> int:
        """Where the first special token in this stretch ends; 0 if it has none."""
        found = self._special.search(text, start, limit)
        return found.end() if found else 0

    def _by_prefixes(
        self, messages: Messages, tools: Messages, text: str, spoken: Sequence[int], where: str, stop: str | None = None
    ) -> list[Turn]:
        turns, asked = [], _asked(messages)
        stop = self.stop if stop is None else stop
        for i in spoken:
            before = self._before(messages[:i], tools, where)
            if text.startswith(before):
                after = self._jinja.render(messages[: i + 1], tools, where=where).text
                shared = self._shared(after, text)
                says = shared > len(before) and not self._words(after[shared:])
                start = len(before) + (self._header(text) if not before else 0)
                if says:
                    turns.append(Turn(i, start, self._end(text, start, shared, stop)))
                elif i > asked and self._words(after[len(before) :]):
                    turns.append(self._shown(messages, tools, text, i, start, stop, after[len(before) :], where))
                else:
                    turns.append(Turn(i, start, start))
            elif i > asked and (start := self._words_begin(messages, tools, text, i, before, where)) is not None:
                after = self._jinja.render(messages[: i + 1], tools, where=where).text
                turns.append(self._shown(messages, tools, text, i, start, stop, after[start:], where))
            elif i > asked or i == spoken[-1]:
                at = len(os.path.commonprefix([before, text]))
                raise Fault(
                    f"{where}: what {self._jinja.name} renders before messages[{i}], which is what a sampler sees, is "
                    f"not how it begins the whole conversation ({before[at : at + 30]!r} against "
                    f"{text[at : at + 30]!r}); {ADVICE}"
                )
        return turns

    def _shown(
        self, messages: Messages, tools: Messages, text: str, i: int, start: int, stop: str, alone: str, where: str
    ) -> Turn:
        """What the whole conversation shows of a turn from `start` on, where it is not what the turn reads as when it
        is the last (`alone`): to the last end-of-turn token before the next message's words. Empty if words of the
        turn are gone."""
        found = self._special.findall(alone)
        stop = stop or (found[-1] if found else "")
        limit = self._next_words(messages, tools, text, i, where)
        ended = [
            at for each in (stop, *found[-1:]) if each and (at := text.rfind(each, start, limit) + len(each)) > start
        ]
        if not ended or limit <= start:
            raise Fault(
                f"{where}: messages[{i}] reads otherwise in the whole conversation than where {self._jinja.name} ends "
                f"with it, and where it ends there cannot be told; {ADVICE}"
            )
        kept = all(words in text[start : ended[0]] for words in _said(messages[i]) if words in alone)
        return Turn(i, start, ended[0] if kept else start)

    def _next_words(self, messages: Messages, tools: Messages, text: str, i: int, where: str) -> int:
        """Where in the text the words of the message after this one begin, or 0: up to there the text stays the same
        when they are others."""
        if i + 1 == len(messages):
            return len(text)
        following = messages[i + 1]
        begin = ANSWER if following["content"].startswith(ANSWER) else ""  # it must stay no question
        calls = [_renamed(call) for call in following.get("tool_calls") or () if isinstance(call, Mapping)]
        for change in ({"content": begin + MARK + following["content"][len(begin) :]}, {"tool_calls": calls}):
            try:
                other = [*messages[: i + 1], {**following, **change}, *messages[i + 2 :]]
                frame = self._jinja.render(other, tools, where=where).text
            except Fault:
                continue
            if frame != text:
                return len(os.path.commonprefix([frame, text]))
        return 0

    def _words_begin(
        self, messages: Messages, tools: Messages, text: str, i: int, before: str, where: str
    ) -> int | None:
        """Where a turn's words begin behind its header, if the sampler's prompt goes on from there with what the whole
        conversation does not show (an empty block of thoughts, where thinking is off)."""
        other = [*messages[:i], {**messages[i], "content": MARK + messages[i]["content"]}, *messages[i + 1 :]]
        try:
            at = self._jinja.render(other, tools, where=where).text.find(MARK)
            head = self._jinja.render(messages[:i], tools, where=where).text
        except Fault:
            return None
        return at if at > len(head) and text[:at] == before[:at] and text.startswith(head) else None

    def _header(self, text: str) -> int:
        """How much of a text that begins with the assistant's turn is its header, where no prompt shows that."""
        opening = self._shape.opening if self._shape else ""
        return len(opening) if text.startswith(opening) else 0

    def _before(self, messages: Messages, tools: Messages, where: str) -> str:
        if messages:
            return self._jinja.render(messages, tools, speak=True, where=where).text
        try:
            return self._jinja.render(messages, tools, speak=True, where=where).text
        except Fault:
            raise Fault(
                f"{where}: messages[0] is the assistant's, and {self._jinja.name} renders no prompt before it; begin "
                f"with the user, or {ADVICE}"
            ) from None

    def _by_words(
        self, messages: Messages, tools: Messages, text: str, spoken: Sequence[int], where: str
    ) -> list[Turn] | None:
        """The same from three renderings, however many turns: with other words in the assistant's place, the template
        writes the same around them. None where it does not, or where a turn is more than words."""
        shape = self._shape
        if shape is None or any(set(messages[i]) != {"role", "content"} for i in spoken):
            return None
        names = {i: f"q{i}jx" for i in spoken}
        other = [{**m, "content": names[i]} if i in names else m for i, m in enumerate(messages)]
        try:
            frame = self._jinja.render(other, tools, where=where).text
        except Fault:
            return None
        between = re.split("|".join(names.values()), frame)
        if re.findall("|".join(names.values()), frame) != list(names.values()) or not text.startswith(between[0]):
            return None
        at, turns = len(between[0]), []
        for i, following in zip(spoken, between[1:], strict=True):
            said = messages[i]["content"]
            fits = (w for w in (said, said.strip(), said.lstrip(), said.rstrip()) if text.startswith(w + following, at))
            if not said.strip() or (words := next(fits, None)) is None:
                return None
            start, stop = at - len(shape.lead), at + len(words)
            if not text.startswith(shape.tail, stop) or not text.endswith(shape.opening + shape.lead, 0, at):
                return None
            turns.append(Turn(i, start, stop + len(shape.tail)))
            at = stop + len(following)
        whole = at == len(text) and self._before(messages[: spoken[-1]], tools, where) == text[: turns[-1].start]
        return turns if whole else None

    @cached_property
    def _learnt(self) -> tuple[str, list[Turn]]:
        """A conversation of two exchanges and its turns; none if the template does not take it."""
        said = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate(WORDS)]
        try:
            text = self._jinja.render(said).text
            return text, self._by_prefixes(said, (), text, (1, 3), "a conversation", stop="")
        except Fault:
            return "", []

    @property
    def _forgets(self) -> bool:
        """Whether even a plain turn reads otherwise once a question follows it."""
        _, turns = self._learnt
        return bool(turns) and turns[-1].end > turns[-1].start and (len(turns) < 2 or turns[0].start == turns[0].end)

    @cached_property
    def _shape(self) -> _Shape | None:
        text, turns = self._learnt
        at = text.find(WORDS[1], turns[0].start, turns[0].end) if len(turns) == 2 else -1
        if at < 0:
            return None
        first, said = turns[0], [{"role": "user", "content": WORDS[0]}]
        try:
            question, prompt = (self._jinja.render(said, speak=speak).text for speak in (False, True))
        except Fault:
            return None
        opening = prompt[len(question) :] if prompt.startswith(question) else ""
        return _Shape(opening, text[first.start : at], text[at + len(WORDS[1]) : first.end])

    def _shared(self, after: str, text: str) -> int:
        """How far the two are the same, special tokens being the same or not as a whole."""
        shared = len(after) if text.startswith(after) else len(os.path.commonprefix([after, text]))
        near = max(0, shared - 64)
        for found in self._special.finditer(after, near, shared + 64):
            if found.start() < shared < found.end():
                return found.start()
        return shared

    def _words(self, rest: str) -> bool:
        """Whether anything but special tokens and white space is left of a turn."""
        return bool(self._special.sub("", rest).strip())

    def _end(self, text: str, start: int, end: int, stop: str) -> int:
        """Where the turn's last token ends: white space behind an end-of-turn token is not the assistant's, nor what
        a template puts behind the last turn only."""
        near = max(start, end - 256)
        if not (run := self._run.search(text[near:end])):
            return end
        first = run.group().find(stop) if stop else -1
        kept = first + len(stop) if first >= 0 else len(run.group().rstrip())
        return near + run.start() + kept


def _asked(messages: Messages) -> int:
    """The last question. What a tool answers is none, though some data has the user say it."""
    return max(
        (i for i, m in enumerate(messages) if m["role"] == "user" and not m["content"].startswith(ANSWER)), default=-1
    )


def _said(message: Mapping[str, Any]) -> list[str]:
    """The words of a turn, thoughts and names of calls among them, as far as any template leaves them in one piece."""
    thoughts = [message[name] for name in REASONING if isinstance(message.get(name), str)]
    calls = [call.get("function") or call for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    names = [str(call.get("name", "")) for call in calls if isinstance(call, Mapping)]
    pieces = [*re.split(r"</?think(?:ing)?>", message["content"]), *thoughts, *names]
    return [piece.strip() for piece in pieces if piece.strip()]


def _renamed(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same call of something else."""
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _renamed(call["function"])}
    return {**call, "name": MARK + str(call.get("name", ""))}
