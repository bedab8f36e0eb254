# SPDX-License-Identifier: Apache-2.0
"""What a verb says to a person, and what it is told: standard streams that hold whatever they are given."""

import codecs
import os
import sys
from contextlib import AbstractContextManager
from typing import TextIO

from rich.console import Console

from jaxpost.faults import Fault


def asked() -> str:
    """What the user says next; of piped input, without the mark that asks for it."""
    try:
        return as_text(input("> " if sys.stdin.isatty() else "").strip())
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise Fault(f"standard input is not {error.encoding}") from error


def standard_input() -> str:
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise Fault(f"standard input is not {error.encoding}") from error


def as_text(given: str) -> str:
    """As it is, if it is text: bytes that are none come in disguise, and no tokenizer takes them."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise Fault(f"what was given is not UTF-8 (character {error.start + 1})") from error
    return given


PLAIN = str.maketrans(
    {"⟦": "[[", "⟧": "]]", "…": "...", "−": "-", "–": "-", "±": "+-", "·": "-", "━": "-", "╸": "-", "█": "#"}
)


def open_streams() -> None:
    """Standard streams that can be written to and read from, whatever the caller closed and whatever it can show."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open as long as the process runs)

    def plain(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        text = error.object[error.start : error.end].translate(PLAIN)
        return text.encode("ascii", "replace").decode("ascii"), error.end

    codecs.register_error("jaxpost.plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="jaxpost.plain")  # pyright: ignore[reportAttributeAccessIssue]


def status(message: str) -> AbstractContextManager[None]:
    from jaxpost.train.progress import status

    return status(message, Console(stderr=True))


def complain(text: str) -> None:
    Console(stderr=True).print(f"[red]jaxpost:[/red] {escaped(text)}", highlight=False, soft_wrap=True)
    sys.exit(2)


def warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning in one line (`warnings.showwarning`): where in the code it was given is nothing to a user."""
    Console(stderr=True).print(f"[yellow]jaxpost:[/yellow] {escaped(str(message))}", highlight=False, soft_wrap=True)


def say(text: str) -> None:
    Console(highlight=False).print(text, soft_wrap=True)


def escaped(text: str) -> str:
    return text.replace("[", "\\[")
