# SPDX-License-Identifier: Apache-2.0
"""The shapes that rows of training data come in, told apart by their fields and brought to one form each.

What a row is decides what it may be used for: `Text`, `Dialogue` and `Completion` are tuned on, `Preference`,
`Unpaired` and `Ranking` are compared, a `Prompt` is answered, what is `Marked` is classified. A prompt and what answers
it are both strings (used as they are) or both tuples of messages (worded by a chat template).
"""

import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpost.data.rows.fields import Fields, kind_of, renamed
from jaxpost.data.rows.messages import Message, from_sharegpt, messages, one_or_more, split_answer, tools_of
from jaxpost.data.rows.preferences import implicit_prompt, without_prompt
from jaxpost.data.rows.votes import Votes, agreement, counted
from jaxpost.faults import Fault, nearest

Said = str | tuple[Message, ...]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Dialogue:
    """Messages, each a mapping with `role` and `content` (maybe `tool_calls`, `name`, ...), and the tools offered."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Completion:
    prompt: Said
    completion: Said


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt. `margin`: by how much the chosen one is better, where the row says so. `tied`: those
    who were asked could not decide."""

    prompt: Said
    chosen: Said
    rejected: Said
    margin: float | None = None
    weight: float = 1.0
    votes: Votes = Votes()
    tied: bool = False


@dataclass(frozen=True)
class Unpaired:
    """One answer, and whether it is a good one. `mismatched` is an answer to something else."""

    prompt: Said
    completion: Said
    label: bool
    weight: float = 1.0
    mismatched: Said | None = None


@dataclass(frozen=True)
class Ranking:
    """Several answers to one prompt, a higher score being better. Where people voted, an answer's score is the number
    of its votes. Answers without a score are left out, so there may be one, or none."""

    prompt: Said
    completions: tuple[Said, ...]
    scores: tuple[float, ...]
    weight: float = 1.0
    votes: Votes = Votes()


@dataclass(frozen=True)
class Prompt:
    prompt: Said


@dataclass(frozen=True)
class Marked:
    """Words with a label each, or a passage of which a part answers a question: `labels` reads these fields."""

    fields: Fields


Shape = Text | Dialogue | Completion | Preference | Unpaired | Ranking | Prompt | Marked

# What each way of writing a row looks like, for messages.
KNOWN = {
    "text": "text",
    "messages": "messages",
    "sharegpt": "conversations (from, value)",
    "completion": "prompt, completion",
    "alpaca": "instruction, output",
    "preference": "chosen, rejected",
    "unpaired": "prompt, completion, label",
    "ranking": "prompt, completions, scores",
    "prompt": "prompt",
    "words": "tokens, labels",
    "passage": "question, context, answer",
}
COMMON = ("text", "messages", "conversations", "prompt, completion", "instruction, output", "chosen, rejected")
# What a question and its answer are called by files that call them by none of our names.
QUESTIONS = ("question", "query", "instruction", "input", "user", "problem", "source", "context", "document", "article")
ANSWERS = ("answer", "response", "output", "assistant", "solution", "target", "reply", "summary", "highlights")
PARTNERS = ("completion", "completions", "chosen", "rejected", "messages")
NAMES = (*PARTNERS, "text", "conversations", "prompt", "instruction", "output", "label", "scores", "ranks")


def normalise(row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> Shape:
    """What a row says, in one of eight forms. Its fields decide which; fields that its shape does not use are ignored.

    - `text`; `messages` (role, content; maybe with `tools`); `prompt` and `completion`; `prompt` alone
    - `instruction`, `input`, `output`, `system`, `history` (alpaca): messages of which the output is the completion
    - `conversations` of `from` and `value` (sharegpt): messages, human and gpt being user and assistant
    - `chosen` and `rejected`, with `prompt` or what they have in common as prompt, and maybe a `margin`; where several
      people were asked, their `votes`, each "chosen", "rejected" or null
    - a completion or a dialogue with `label` (or `kto_tag`), true or false
    - `prompt`, `completions` and their `scores`, or `ranks` of which 1 is the best (null: that answer is left out), or
      `votes`, each the number of the best answer, counted from 0, or null
    - `tokens` and their `labels`; a `question`, a `context` and the `answer` in it

    What is compared or judged may have a `weight`: what it counts beside others, 1 if it is not said.
    `columns` maps a file's names to these, as in `{"question": "prompt", "answer": "completion"}`; a name with dots
    reaches into objects (`"translation.en"`). An empty (null) field counts as absent.
    """
    fields = renamed(row, columns)
    return _READERS[_shape(fields)](fields)


def shape_of(row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> str:
    """Which way a row is written, a key of `KNOWN`, by the names of its fields alone."""
    return _shape(renamed(row, columns))


def _shape(fields: Fields) -> str:
    has = fields.present
    if "chosen" in has or "rejected" in has:
        return "preference"
    if "completions" in has:
        return "ranking"
    for name, shape in (("messages", "messages"), ("conversations", "sharegpt")):
        if name in has:
            return "unpaired" if _labelled(has) else shape
    if "completion" in has:
        return "unpaired" if _labelled(has) else "completion"
    if "instruction" in has and "output" in has:
        return "unpaired" if _labelled(has) else "alpaca"
    if "text" in has:
        return "text"
    if "prompt" in has:
        _only_a_prompt(fields)
        return "prompt"
    if "tokens" in has and "labels" in has:
        return "words"
    if "question" in has and "context" in has and not {"answer", "answers", "start"}.isdisjoint(has):
        return "passage"
    raise Fault(f"{fields.where}: {_unknown(fields)}")


def _labelled(has: Sequence[str]) -> bool:
    return "label" in has or "kto_tag" in has


def _only_a_prompt(fields: Fields) -> None:
    """Raises if another field looks like a mistyped answer: the row would silently be half of what it is."""
    for name in fields.present:
        if name != "prompt" and (offer := nearest(name, PARTNERS)).startswith("did you mean") and len(name) > 5:
            raise Fault(
                f"{fields.where}: the field {name!r} beside 'prompt' is not known; {offer} (the row has: "
                f"{', '.join(fields.present)})"
            )


def _unknown(fields: Fields) -> str:
    names = list(map(str, fields.row))
    near = "; ".join(f"did you mean {offer}? ({name!r})" for name in names for offer in _misspelt(name))
    empty = [name for name in names if name not in fields.present]
    names[12:] = [f"and {len(names) - 12} more"] if len(names) > 12 else []
    return (
        f"a row of no known shape (the row has: {', '.join(names) or 'nothing'}"
        + (f"; null: {', '.join(empty)}" if empty else "")
        + f"){'; ' + near if near else ''}; the shapes are {' | '.join(COMMON)}: name its fields so, or map them"
        + ("" if near else _mapping(fields))
    )


def _misspelt(name: str) -> list[str]:
    """The name that it is a slip of: `question` is none of `conversations`."""
    return [] if name in NAMES else difflib.get_close_matches(name, NAMES, n=1, cutoff=0.8)


def _mapping(fields: Fields) -> str:
    """The row's own names as the flag that would make a shape of it."""
    texts = [name for name in fields.present if isinstance(fields.row[name], str)]
    if not texts:
        return " (columns)"
    answer = next((name for name in texts if name.lower() in ANSWERS), None)
    others = [name for name in texts if name != answer]
    asked = next((name for name in others if name.lower() in QUESTIONS), others[0] if others else None)
    if asked is not None and answer is None:
        answer = next((name for name in others if name != asked), None)
    pairs = (asked, "prompt", answer, "completion") if asked and answer else (texts[0], "text")
    return f", e.g. --data.columns {' '.join(map(shlex.quote, pairs))}"


def _text(fields: Fields) -> Text:
    return Text(fields.string("text"))


def _dialogue(fields: Fields) -> Dialogue:
    system = ({"role": "system", "content": fields.string("system")},) if fields.filled("system") else ()
    name = "messages" if "messages" in fields.present else "conversations"
    read = messages if name == "messages" else from_sharegpt
    said = read(fields.structure(name), fields.place(name))
    if system and said[0]["role"] == "system":
        raise Fault(f"{fields.where}: a system message in {fields.theirs(name)!r} and a field 'system'; keep one")
    return Dialogue(system + said, tools_of(fields.structure("tools"), fields.place("tools")))


def _completion(fields: Fields) -> Completion:
    return Completion(*alike(_prompt(fields), _said(fields, "completion")))


def _alpaca(fields: Fields) -> Completion:
    return Completion(_instructed(fields), ({"role": "assistant", "content": fields.string("output")},))


def _instructed(fields: Fields) -> tuple[Message, ...]:
    """Alpaca's question: the input stands below the instruction; turns of the history are read, not trained."""
    question = fields.string("instruction")
    if fields.filled("input"):
        question += "\n" + fields.string("input")
    said: list[Message] = []
    if fields.filled("system"):
        said.append({"role": "system", "content": fields.string("system")})
    history: Any = fields.structure("history") or ()
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise Fault(f"{fields.place('history')} must be a list of [question, answer], not {kind_of(history)}")
    for i, turn in enumerate(history):
        if isinstance(turn, str) or [type(part) for part in turn] != [str, str]:
            raise Fault(f"{fields.place('history')}[{i}] must be [question, answer], not {kind_of(turn)}")
        said += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return (*said, {"role": "user", "content": question})


def _preference(fields: Fields) -> Preference:
    chosen, rejected = _said(fields, "chosen"), _said(fields, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Fault(
            f"{fields.where}: 'chosen' is {_form(chosen)} and 'rejected' is {_form(rejected)}; make both the same"
        )
    prompt = _given_prompt(fields)
    if prompt is None:
        prompt, chosen, rejected = implicit_prompt(chosen, rejected, fields.where)
    else:
        prompt, chosen, rejected = without_prompt(prompt, chosen, rejected)
        prompt, chosen, rejected = alike(prompt, chosen, rejected)
    margin = fields.number("margin") if "margin" in fields.present else None
    if "votes" not in fields.present:
        return Preference(prompt, chosen, rejected, margin, _weight(fields))
    votes = fields.structure("votes")
    first, second = counts = counted(votes, ("chosen", "rejected"), fields.place("votes"))
    if second > first:
        chosen, rejected = rejected, chosen
    asked = agreement(counts, len(votes))
    return Preference(prompt, chosen, rejected, margin, _weight(fields), asked, tied=first == second)


def _given_prompt(fields: Fields) -> Said | None:
    has = fields.present
    if "prompt" in has:
        return _prompt(fields)
    if "instruction" in has:
        return _instructed(fields)
    return _dialogue(fields).messages if "messages" in has or "conversations" in has else None


def _unpaired(fields: Fields) -> Unpaired:
    label = fields.truth("label" if "label" in fields.present else "kto_tag")
    if "messages" in fields.present or "conversations" in fields.present:
        return Unpaired(*split_answer(_dialogue(fields).messages, fields.where), label, _weight(fields))
    whole = _completion(fields) if "completion" in fields.present else _alpaca(fields)
    if "mismatched" not in fields.present:
        return Unpaired(whole.prompt, whole.completion, label, _weight(fields))
    prompt, completion, other = alike(whole.prompt, whole.completion, _said(fields, "mismatched"))
    return Unpaired(prompt, completion, label, _weight(fields), other)


def _ranking(fields: Fields) -> Ranking:
    given = fields.structure("completions")
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise Fault(f"{fields.place('completions')} must be a list of answers, one at least, not {kind_of(given)}")
    if len({isinstance(one, str) for one in given}) > 1:
        raise Fault(f"{fields.place('completions')} holds strings and messages; make all of them the same")
    answers = tuple(_spoken(one, f"{fields.place('completions')}[{i}]") for i, one in enumerate(given))
    prompt, *answers = alike(_prompt(fields), *answers)
    if "votes" in fields.present and not {"scores", "ranks"} & set(fields.present):
        votes = fields.structure("votes")
        counts = counted(votes, tuple(map(str, range(len(answers)))), fields.place("votes"))
        asked = agreement(counts, len(votes))
        return Ranking(prompt, tuple(answers), tuple(map(float, counts)), _weight(fields), asked)
    sign, name = (1, "scores") if "scores" in fields.present else (-1, "ranks")
    scores = fields.numbers(name, len(answers))
    kept = [(answer, sign * score) for answer, score in zip(answers, scores, strict=True) if score is not None]
    return Ranking(prompt, tuple(a for a, _ in kept), tuple(score for _, score in kept), _weight(fields))


def _weight(fields: Fields) -> float:
    if "weight" not in fields.present:
        return 1.0
    if (weight := fields.number("weight")) < 0:
        raise Fault(f"{fields.place('weight')} is {weight:g}; what a row counts beside others is 0 or more")
    return weight


def _only_prompt(fields: Fields) -> Prompt:
    return Prompt(_prompt(fields))


def _prompt(fields: Fields) -> Said:
    """The prompt; a field `system` stands before it, as a message."""
    prompt = _said(fields, "prompt")
    if not fields.filled("system"):
        return prompt
    system = {"role": "system", "content": fields.string("system")}
    return (system, *as_messages(prompt, "user"))


def _said(fields: Fields, name: str) -> Said:
    value = fields.need(name)
    if isinstance(value, (str, int, float)):
        return fields.string(name)
    return _spoken(value, fields.place(name))


def _spoken(value: Any, where: str) -> Said:
    return value if isinstance(value, str) else one_or_more(value, where)


def as_messages(said: Said, role: str) -> tuple[Message, ...]:
    return ({"role": role, "content": said},) if isinstance(said, str) else said


def alike(prompt: Said, *answers: Said) -> tuple[Said, ...]:
    """A prompt and its answers, all strings or all messages: as soon as one is messages, all are."""
    if all(isinstance(said, str) for said in (prompt, *answers)):
        return prompt, *answers
    return as_messages(prompt, "user"), *(as_messages(answer, "assistant") for answer in answers)


def _form(said: Said) -> str:
    return "a string" if isinstance(said, str) else "messages"


_READERS: Mapping[str, Callable[[Fields], Shape]] = {
    "text": _text,
    "messages": _dialogue,
    "sharegpt": _dialogue,
    "completion": _completion,
    "alpaca": _alpaca,
    "preference": _preference,
    "unpaired": _unpaired,
    "ranking": _ranking,
    "prompt": _only_prompt,
    "words": Marked,
    "passage": Marked,
}
