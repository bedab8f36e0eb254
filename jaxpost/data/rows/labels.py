# SPDX-License-Identifier: Apache-2.0
"""Rows in which something has a label: a text, its words, or the stretch of it that answers a question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxpost.data.rows.fields import Fields, checked_string, kind_of, renamed
from jaxpost.faults import Fault, nearest

Kind = Literal["sequence", "token", "span"]
UNLABELLED = (None, -100)
"""What stands in a list of labels for a word that has none."""


@dataclass(frozen=True)
class Classes:
    """So many classes, which labels name by their number or, where they have names, by those."""

    count: int
    names: tuple[str, ...] = ()

    @property
    def called(self) -> tuple[str, ...]:
        return self.names or tuple(map(str, range(self.count)))

    def number(self, label: Any, place: str) -> int:
        if isinstance(label, str) and label in self.names:
            return self.names.index(label)
        if isinstance(label, str) and not label.strip().isdigit():
            said = nearest(label, self.names) if self.names else "set labels to the names of the classes"
            raise Fault(f"{place}: no class is called {label!r}; {said}")
        if not isinstance(label, (int, str)):
            raise Fault(f"{place} must be a class, by number or name, not {kind_of(label)}")
        if not 0 <= (number := int(label)) < self.count:
            raise Fault(f"{place} is {number}, and the classes are numbered 0 to {self.count - 1}; a head has as many "
                        "scores as it has classes")  # fmt: skip
        return number


@dataclass(frozen=True)
class Labelled:
    """A text behind what is read before it, the half-open ranges of the text's characters that have labels, in their
    order, and the class of each."""

    before: str
    text: str
    ranges: tuple[tuple[int, int], ...]
    classes: tuple[int, ...]


def labelled(row: Mapping[str, Any], kind: Kind, classes: Classes, columns: Mapping[str, str] | None) -> Labelled:
    """What a row says of its labels.

    - sequence: `text` and its `label`
    - token: `tokens` (words, which are joined by blanks) and their `labels`, null or -100 for one without
    - span: `context` (or `text`), maybe behind a `question`, and in it from `start` to `end`, in characters, or the
      first place of `answer`, or that of SQuAD's `answers`

    `columns` maps the file's names to these.
    """
    fields = renamed(row, columns)
    if kind == "sequence":
        text = fields.string("text")
        return Labelled("", text, ((0, len(text)),), (classes.number(fields.need("label"), fields.place("label")),))
    return _tagged(fields, classes) if kind == "token" else _passage(fields)


def _tagged(fields: Fields, classes: Classes) -> Labelled:
    words, labels = _listed(fields, "tokens"), _listed(fields, "labels")
    if len(words) != len(labels):
        raise Fault(f"{fields.where}: {len(words)} tokens and {len(labels)} labels; each token needs one (or null)")
    ranges, numbers, at = [], [], 0
    for i, (word, label) in enumerate(zip(words, labels, strict=True)):
        stop = at + len(checked_string(word, f"{fields.place('tokens')}[{i}]"))
        if label not in UNLABELLED:
            ranges.append((at, stop))
            numbers.append(classes.number(label, f"{fields.place('labels')}[{i}]"))
        at = stop + 1
    return Labelled("", " ".join(words), tuple(ranges), tuple(numbers))


def _listed(fields: Fields, name: str) -> Sequence[Any]:
    fields.need(name)
    values = fields.structure(name)
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise Fault(f"{fields.place(name)} must be a list, one for each word, not {kind_of(values)}")
    return values


def _passage(fields: Fields) -> Labelled:
    text = fields.string("context" if "context" in fields.present else "text")
    start, stop = _answer(fields, text)
    if not 0 <= start < stop <= len(text):
        raise Fault(f"{fields.where}: the answer from {start} to {stop} lies outside of the {len(text)} characters")
    # White space around an answer is no part of it: tokens may leave it out.
    answer = text[start:stop]
    start, stop = stop - len(answer.lstrip()), start + len(answer.rstrip())
    question = fields.string("question") if fields.filled("question") else ""
    apart = not question or question[-1].isspace()
    return Labelled(question if apart else f"{question}\n", text, ((start, stop),), (0,))


def _answer(fields: Fields, text: str) -> tuple[int, int]:
    """The range of the characters in the text that answer."""
    if "start" in fields.present and "end" in fields.present:
        return int(fields.number("start")), int(fields.number("end"))
    answer, start = fields.row.get("answer"), fields.row.get("start")
    if isinstance(several := fields.structure("answers"), Mapping) and several.get("text"):
        answer, start = several["text"][0], several.get("answer_start", [None])[0]
    if not isinstance(answer, str) or not answer.strip():
        raise Fault(f"{fields.where}: a span needs 'start' and 'end' in characters, or its text as 'answer'")
    start = text.find(answer) if start is None else int(start)
    if start < 0 or text[start : start + len(answer)] != answer:
        raise Fault(f"{fields.where}: the answer {answer[:40]!r} does not stand in the text, at that place or at all")
    return start, start + len(answer)
