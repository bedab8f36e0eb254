# SPDX-License-Identifier: Apache-2.0
"""How a model is asked for something: a text with named places, or a conversation of such texts."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jaxpost.data.principles.files import located, text_of
from jaxpost.data.rows.shapes import Said
from jaxpost.data.sources.lines import JsonLines
from jaxpost.faults import Fault, nearest


class Kind(NamedTuple):
    """The places that a text of a kind must have and may have, and what is said behind it."""

    must: tuple[str, ...]
    may: tuple[str, ...]
    says: str


KINDS = {
    "critique": Kind(("answer",), ("prompt", "request"), "critique"),
    "revision": Kind(("answer",), ("prompt", "request", "critique"), "revision"),
    "direct_revision": Kind(("answer",), ("prompt", "request"), "revision"),
    "reasoning": Kind(("answer_a", "answer_b"), ("prompt", "question"), "reasoning"),
    "judge": Kind(("answer_a", "answer_b"), ("prompt", "question"), "verdict"),
    "reasoned_judge": Kind(("answer_a", "answer_b", "reasoning"), ("prompt", "question"), "verdict"),
}
SPEAKER = re.compile(r"\[(system|user|assistant)\]")
OPEN = "\\"  # at the end of a text: the answer goes on with its last line


class Asked(NamedTuple):
    """What a model is asked: a text, or messages; and how its answer begins already."""

    prompt: Said
    opening: str = ""


@dataclass(frozen=True)
class Wording:
    """A prompt pattern with `{places}`, and solved examples that stand before it.

    `turns` are pairs of a speaker and a pattern. A plain text has one turn, and no speaker.
    """

    source: str
    says: str
    turns: tuple[tuple[str, str], ...]
    examples: tuple[Mapping[str, str], ...] = ()

    @cached_property
    def places(self) -> frozenset[str]:
        return frozenset(name for _, pattern in self.turns for name in _places(pattern, self.source))

    def __call__(self, **said: str) -> Asked:
        """The question, with what is said in its places."""
        if not self.turns[0][0]:
            pattern = self.turns[0][1]
            solved = [f"{pattern.format_map(one)}{one[self.says].strip()}\n\n" for one in self.examples]
            return Asked("".join(solved) + pattern.format_map(said))
        opening = self.turns[-1][1] if self.turns[-1][0] == "assistant" else ""
        asked = self.turns[:-1] if opening else self.turns
        system, rest = [turn for turn in asked if turn[0] == "system"], [turn for turn in asked if turn[0] != "system"]
        turns = [{"role": role, "content": pattern.format_map(said)} for role, pattern in system]
        for one in self.examples:
            turns += [{"role": role, "content": pattern.format_map(one)} for role, pattern in rest]
            turns.append({"role": "assistant", "content": opening.format_map(one) + one[self.says].strip()})
        turns += [{"role": role, "content": pattern.format_map(said)} for role, pattern in rest]
        return Asked(tuple(turns), opening.format_map(said))


def wording(kind: str, name: str, examples: str = "") -> Wording:
    """The text of a kind from a file (or built-in set), and examples from a file of JSON lines, each an object with
    what stands in the text's places and what is said to it (`critique`, `revision`, `reasoning` or `verdict`).

    A file that begins with a line `[user]` or `[system]` is a conversation: such lines say who speaks, and what stands
    behind a last `[assistant]` is how the answer begins. Any other file is a text, and what is said to it stands on a
    new line; or goes on with its last line, if the file ends with a backslash. A brace is written twice.
    """
    path, needs = located(name, kind), KINDS[kind]
    made = Wording(str(path), needs.says, _turns(text_of(path, kind), str(path)))
    known = (*needs.must, *needs.may)
    if unknown := sorted(made.places - set(known)):
        named = kind.replace("_", " ")
        raise Fault(f"{path}: nothing stands at {{{unknown[0]}}} in a {named} prompt; {nearest(unknown[0], known)}")
    if lacking := [place for place in needs.must if place not in made.places]:
        named = kind.replace("_", " ")
        raise Fault(f"{path}: a {named} prompt must show the model {{{lacking[0]}}}, and this one does not")
    return Wording(made.source, made.says, made.turns, _solved(made, examples, kind)) if examples else made


def _solved(made: Wording, name: str, kind: str) -> tuple[Mapping[str, str], ...]:
    rows = JsonLines(located(name, f"{kind}_examples"))
    found = []
    for i in range(len(rows)):
        row = rows[i]
        for place in sorted({*made.places, made.says}):
            if not isinstance(row.get(place), str):
                raise Fault(
                    f"{row.where}: an example for {made.source} needs the text {place!r}; it has {', '.join(row)}"
                )
        found.append(dict(row))
    return tuple(found)


def _turns(text: str, path: str) -> tuple[tuple[str, str], ...]:
    lines = text.lstrip("\n").splitlines()
    if not SPEAKER.fullmatch(lines[0].strip()):
        whole = text.rstrip()
        return (("", whole.removesuffix(OPEN) if whole.endswith(OPEN) else whole + "\n"),)
    turns: list[tuple[str, list[str]]] = []
    for line in lines:
        if speaker := SPEAKER.fullmatch(line.strip()):
            turns.append((speaker[1], []))
        else:
            turns[-1][1].append(line)
    found = tuple((role, "\n".join(said).strip()) for role, said in turns)
    if empty := [role for role, said in found if not said]:
        raise Fault(f"{path}: nothing stands behind the line [{empty[0]}]; say something there, or leave it out")
    if "user" not in [role for role, _ in found]:
        raise Fault(f"{path}: nobody asks in this conversation; add a line [user] and the question behind it")
    return found


def _places(pattern: str, path: str) -> list[str]:
    try:
        parsed = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise Fault(f"{path}: a brace that stands alone ({error}); write it twice where it is meant as such") from None
    for _, name, form, change in parsed:
        if name is not None and (form or change or not name.isidentifier()):
            raise Fault(f"{path}: a place is a name between braces, as {{answer}}, not {{{name}{form and ':'}{form}}}")
    return [name for _, name, _, _ in parsed if name]


def plain(said: Any) -> str:
    """A prompt as it is shown to somebody who judges: a text as it is; of messages, who said what if not one alone."""
    if isinstance(said, str):
        return said.strip()
    if len(said) == 1 and said[0]["role"] == "user":
        return str(said[0]["content"]).strip()
    return "\n\n".join(f"{message['role'].capitalize()}: {str(message['content']).strip()}" for message in said)
