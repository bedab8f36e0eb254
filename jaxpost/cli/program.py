# SPDX-License-Identifier: Apache-2.0
"""From the words of a command line to a verb's call, and from what went wrong to one sentence."""

import functools
import inspect
import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import tyro

from jaxpost.cli.labelling import classify
from jaxpost.cli.merging import merge
from jaxpost.cli.results import evaluate, export, report
from jaxpost.cli.rows import data
from jaxpost.cli.terminal import complain, open_streams, warn
from jaxpost.cli.training import list_configs, train
from jaxpost.cli.words import words
from jaxpost.cli.writing import chat, generate
from jaxpost.faults import Fault, nearest

TYPED: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "chat": chat,
    "eval": evaluate,
    "export": export,
    "classify": classify,
    "merge": merge,
    "report": report,
    "words": words,
    "configs": list_configs,
}
FREE: dict[str, Callable[[list[str]], None]] = {"train": train, "data": data}
VERBS = {**FREE, **TYPED}


def main() -> None:
    """Entry point. A `Fault` is printed as one sentence with exit code 2; anything else is a bug and shows itself."""
    # A TPU host's libtpu and an accelerator-less machine both speak up while JAX looks for devices.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    open_streams()
    warnings.showwarning = warn
    try:
        _run(sys.argv[1:])
    except Fault as fault:
        complain(str(fault))
    except BrokenPipeError:  # whoever read our output has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not (said := surroundings(error)):
            raise
        complain(said)


def _run(arguments: list[str]) -> None:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if not verb or verb in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if verb else sys.stderr)
        sys.exit(0 if verb else 2)
    if verb == "--version":
        from jaxpost import __version__

        print(__version__)
    elif (
        verb in FREE
        and rest[-1:] in (["-h"], ["--help"])
        and all(word in ("show", "stats", *rest[-1:]) for word in rest)
    ):
        print(f"jaxpost {verb} {FREE[verb].__doc__}\n\njaxpost {verb} ... CONFIG --help lists the fields of a config.")
    elif verb in FREE:
        FREE[verb](rest)
    elif verb in TYPED:
        _read(TYPED[verb], rest, f"jaxpost {verb}")()
    else:
        raise Fault(f"jaxpost has no verb {verb!r}; {nearest(verb, VERBS)}")


def _read(function: Callable[..., Any], arguments: list[str], command: str) -> Callable[[], Any]:
    """The call that the arguments ask for. What is wrong with them is said in a sentence."""

    @functools.wraps(function)
    def bound(*positional: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(function, *positional, **named)

    verb = command.removeprefix("jaxpost ")
    known = {f"--{name.replace('_', '-')}" for name in (*inspect.signature(function).parameters, "help")}
    flags = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    if unknown := [flag for flag in flags if flag.replace("--no-", "--") not in known]:
        raise Fault(f"{verb}: no flag {unknown[0]}; {nearest(unknown[0], known)}")
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(bound, args=arguments, prog=command)
    except SystemExit as error:
        if not error.code:
            raise
        # The first part of a box of lines: what is missing or wrong. The rest repeats the help.
        rows = [row for line in box.getvalue().splitlines()[1:] if (row := line.strip("│╰╯|+ "))]
        rows = itertools.dropwhile(lambda row: not row.strip("─-"), rows)
        told = " ".join(itertools.takewhile(lambda row: row.strip("─-"), rows))
        told = told.replace(f"Missing from {command}:", "missing:").removesuffix(".")
        raise Fault(f"{verb}: {told or 'the arguments make no sense'}; {command} --help tells more") from error


def _usage() -> str:
    verbs = [f"  {verb:<9} {(function.__doc__ or '').splitlines()[0]}" for verb, function in VERBS.items()]
    return "\n".join(
        ["jaxpost VERB ...\n", *verbs, "\njaxpost VERB --help tells more, jaxpost --version which this is."]
    )


def surroundings(error: Exception) -> str:
    """What the machine, not the program, did wrong; nothing for what is a bug."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
        return (
            "the device is out of memory; lower batches.rows or batches.seq_len, raise train.microbatches, or choose "
            f"train.remat full ({text.splitlines()[0][:200]})"
        )
    if text.startswith("Unable to initialize backend"):
        return f"JAX finds no device: {text.splitlines()[0]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return ""
