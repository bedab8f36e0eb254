# SPDX-License-Identifier: Apache-2.0
"""Rows that are compared, judged or answered, rendered: the prompt once, below it each answer with what is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from jaxpost.data.batches.packing import Group
from jaxpost.data.batches.pairs import comparable, shared
from jaxpost.data.parts import Part, joined
from jaxpost.data.rows.shapes import Preference, Prompt, Ranking, Unpaired, normalise
from jaxpost.data.show import CLOSE, OPEN, marker
from jaxpost.data.stats import Asked
from jaxpost.data.text import answered, pair_of, place
from jaxpost.data.tokenizers import Tokenizer, Tokens, align, tokenise
from jaxpost.faults import Fault

GOOD, BAD = "bold green", "bold red"
Answer = tuple[str, str, tuple[Part, ...]]
"""What it is called, its colour, and its text behind its prompt."""


def show_compared(
    row: Any, tokenizer: Tokenizer, columns: Mapping[str, str] | None = None, seq_len: int | None = None
) -> Text:
    """A preference, a ranking, an answer with a label, or a prompt, under a line that says where it is from and how
    long its parts are. What a row of `seq_len` has no room for is counted there."""
    said, where = normalise(row, columns), place(row)
    if isinstance(said, Prompt):
        ((parts,), *_) = Asked().said(row, columns, tokenizer.template)
        count = int((tokenise(tokenizer, parts, "all", where).ids >= 0).sum())
        return Text(f"{where} · a prompt of {count} tokens\n", "bold").append(joined(parts), style="dim")
    answers = _answers(row, columns, tokenizer)
    members = [tokenise(tokenizer, parts, "completion", f"{where} ({name})") for name, _, parts in answers]
    prompt = shared(members)
    lengths = ", ".join(
        f"{name} {len(tokens.ids) - prompt}" for (name, _, _), tokens in zip(answers, members, strict=True)
    )
    places = tokenizer.virtual.count
    learned = f" and {places} places of the learned prompt" if places else ""
    shown = Text(f"{where} · prompt {prompt - places} tokens{learned}, {lengths}", style="bold")
    if isinstance(said, Preference) and said.margin is not None:
        shown.append(f" · margin {said.margin:g}")
    shown.append(_cut(members, prompt, seq_len, tokenizer.bos), style="red")
    common = _common([parts for _, _, parts in answers])
    before, behind = ("", marker(tokenizer)) if tokenizer.virtual.between else (marker(tokenizer), "")
    shown.append("\n").append(before, "bold magenta").append(joined(answers[0][2][:common]), style="dim")
    shown.append(behind, "bold magenta")
    for name, style, parts in answers:
        shown.append(f"\n{name}\n", style="bold")
        end = _end(tokenizer, parts)
        for i, part in enumerate(parts[common:], common):
            written = part.text + (end if i == len(parts) - 1 else "")
            trained = part.trained and written
            shown.append(f"{OPEN}{written}{CLOSE}" if trained else written, style=style if trained else "dim")
    return shown


def _answers(row: Any, columns: Mapping[str, str] | None, tokenizer: Tokenizer) -> list[Answer]:
    said, template = normalise(row, columns), tokenizer.template
    if isinstance(said, Preference):
        chosen, rejected = pair_of(row, columns, template)
        return [("chosen", GOOD, chosen), ("rejected", BAD, rejected)]
    if isinstance(said, Unpaired):
        name, style = ("good", GOOD) if said.label else ("bad", BAD)
        return [(name, style, answered(said.prompt, said.completion, template, place(row)))]
    if isinstance(said, Ranking):
        order = sorted(range(len(said.scores)), key=lambda i: -said.scores[i])
        return [
            (f"score {said.scores[i]:g}", GOOD, answered(said.prompt, said.completions[i], template, place(row)))
            for i in order
        ]
    raise Fault(f"{place(row)}: no preference, ranking, labelled answer or prompt")


def _end(tokenizer: Tokenizer, parts: tuple[Part, ...]) -> str:
    """The eos, where one is put behind a text that does not hold it."""
    tokens, spans = align(tokenizer, parts)
    put = tokens.ids[-1] == tokenizer.eos and spans[-1, 0] == spans[-1, 1]
    return tokenizer.piece(int(tokens.ids[-1])) if put else ""


def _common(answers: Sequence[tuple[Part, ...]]) -> int:
    """How many parts all begin with, none of them trained."""
    count = 0
    while all(count < len(parts) - 1 and parts[count] == answers[0][count] for parts in answers):
        if answers[0][count].trained:
            break
        count += 1
    return count


def _cut(members: Sequence[Tokens], prompt: int, seq_len: int | None, bos: int | None) -> str:
    if seq_len is None or Group(tuple(members)).size <= seq_len:
        return ""
    if (cut := comparable(Group(tuple(members)), seq_len, bos)) is None:
        return f" · left out: nothing to compare fits {seq_len}"
    lost = prompt - shared(cut.members)
    gone = sum(len(tokens.ids) for tokens in members) - sum(len(tokens.ids) for tokens in cut.members)
    return f" · cut to {seq_len}: {lost} tokens of the prompt, {gone - lost * len(members)} of the answers"
