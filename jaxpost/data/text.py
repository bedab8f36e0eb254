# SPDX-License-Identifier: Apache-2.0
"""Rows of the common shapes, rendered to text of which some parts are trained and the rest is only read."""

from collections.abc import Mapping
from typing import Any

from jaxpost.data.chat.template import STOP, BuiltIn, Template
from jaxpost.data.parts import Part
from jaxpost.data.rows import shapes
from jaxpost.data.tasks import Example, Row
from jaxpost.faults import Fault

__all__ = ["STOP", "Part", "as_prompt", "chat_prompt", "pair_of", "parts_of", "place", "unlearnt"]

BUILT_IN = BuiltIn()
Parts = tuple[Part, ...]
# The shapes that are not tuned on as they are, and who learns from them.
OTHERS: dict[type, tuple[str, str]] = {
    shapes.Preference: (
        "a preference (chosen and rejected)",
        "reward and preference recipes (reward, dpo) learn from it",
    ),
    shapes.Unpaired: ("an answer with a label", "recipes for unpaired answers (kto) learn from it"),
    shapes.Ranking: ("a ranking of answers", "reward recipes learn from it"),
    shapes.Prompt: ("a prompt alone", "recipes that sample their own answers (ppo, grpo) learn from it"),
    shapes.Marked: (
        "words with labels, or an answer within a context",
        "the classify recipe learns from it, or map its fields (--data.columns question prompt answer completion)",
    ),
}


def parts_of(row: Row | Example, columns: Mapping[str, str] | None = None, template: Template | None = None) -> Parts:
    """What one row says, cut where training starts and stops.

    A row is an `Example`, or has a shape that `shapes.normalise` knows: text, a dialogue, or a prompt with its
    completion. Messages are worded by the `template` (default: the built-in one); of a completion, only what follows
    the prompt is trained. `columns` renames a file's fields, e.g. `{"question": "prompt", "answer": "completion"}`.
    """
    if isinstance(row, Example):
        return Part(row.prompt, False), Part(row.target, True, opens=True)
    where, said = place(row), shapes.normalise(row, columns)
    if isinstance(said, shapes.Text):
        return (Part(said.text, True),)
    if isinstance(said, shapes.Dialogue):
        return (template or BUILT_IN).parts(said.messages, said.tools, where=f"{where}: messages")
    if isinstance(said, shapes.Completion):
        return answered(said.prompt, said.completion, template, where)
    kind, taken = OTHERS[type(said)]
    raise Fault(f"{where}: {kind}, and this run learns from text, messages, or prompts with completions; {taken}")


def pair_of(
    row: Row, columns: Mapping[str, str] | None = None, template: Template | None = None
) -> tuple[Parts, Parts]:
    """The chosen and the rejected answer of a preference row, each behind the same prompt."""
    where, said = place(row), shapes.normalise(row, columns)
    if not isinstance(said, shapes.Preference):
        raise Fault(f"{where}: no preference: a row needs the fields chosen and rejected, and a prompt or none")
    return compared(said, template, where)


def compared(said: shapes.Preference, template: Template | None, where: str) -> tuple[Parts, Parts]:
    """The two answers of a preference, each behind the same prompt."""
    chosen, rejected = (answered(said.prompt, answer, template, where) for answer in (said.chosen, said.rejected))
    if not isinstance(said.prompt, str) or chosen[0].text == rejected[0].text:
        return chosen, rejected
    # White space begins one of the answers and not the other: what sets them apart from the prompt goes for both.
    before = as_prompt(said.prompt)
    return tuple((Part(before, False), Part(answer, True, opens=True)) for answer in (said.chosen, said.rejected))  # pyright: ignore


def answered(prompt: Any, completion: Any, template: Template | None, where: str) -> Parts:
    """A prompt, read, and what answers it, trained: both strings, or both messages."""
    if isinstance(prompt, str):
        return Part(as_prompt(prompt, completion), False), Part(completion, True, opens=True)
    return (template or BUILT_IN).parts([*prompt, *completion], since=len(prompt), where=f"{where}: messages")


def unlearnt(parts: Parts) -> int:
    """How many turns of the assistant are only read, though nothing but the template keeps them from being trained."""
    return sum(part.unlearnt for part in parts)


def as_prompt(prompt: str, completion: str = "") -> str:
    """The prompt, ended by a newline unless white space already separates it from its completion.

    Without it "in May?" and "She sold" would share a token, and the prompt alone, which is what the sampler sees,
    would be tokenised differently from the prompt in training.
    """
    apart = not prompt or prompt[-1].isspace() or completion[:1].isspace()
    return prompt if apart else prompt + "\n"


def chat_prompt(messages: Any, template: Template | None = None) -> str:
    """The text of a conversation up to where the assistant speaks next: a prefix of what training shows."""
    return (template or BUILT_IN).prompt(messages)


def place(row: Any) -> str:
    """Where a row is from, for messages: `file:line` if its source says so."""
    if isinstance(row, Example):
        return f"task {row.task or '(unnamed)'}"
    return getattr(row, "where", "a row")
