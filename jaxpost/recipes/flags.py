# SPDX-License-Identifier: Apache-2.0
"""A config with fields changed by flags, `--optim.lr 3e-4`: typed, checked, and each mistake answered in a sentence."""

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from jaxpost.faults import Fault, nearest

# Flags change fields, never their kinds: another kind of delta or of data is another function.
KINDS = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "one word (quote it if it has spaces)"}


def override(config: Any, arguments: Sequence[str], command: str) -> Any:
    """The config with the fields that the flags name changed. Raises `Fault` for a field that there is none of, or only
    of another kind, and for a value of another type. `--help` lists the fields and leaves."""
    if not {"-h", "--help"}.isdisjoint(arguments):
        return _parsed(config, arguments, command)
    flags = list(_flags(arguments, command))
    hints = dict(_fields(config))
    for name, _ in flags:
        if name not in hints:
            raise Fault(_unknown(config, name, hints, command))
    try:
        with redirect_stderr(io.StringIO()):  # a box of lines, of which the sentence below says what matters
            return _parsed(config, arguments, command)
    except SystemExit as error:
        if fault := _cause(error):
            raise fault from error
        for name, words in flags:
            _check(config, name, words, hints[name], command)
        raise  # not understood, so left to speak for itself


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _parsed(config: Any, arguments: Sequence[str], command: str) -> Any:
    return tyro.cli(type(config), default=config, args=list(arguments), prog=command, config=KINDS)


def _flags(arguments: Sequence[str], command: str) -> Iterator[tuple[str, list[str]]]:
    """Each flag as a dotted name, with the words behind it as they stand."""
    found: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            found.append((name, [word]))
        elif found:
            found[-1][1].append(word)
        else:
            raise Fault(f"{word!r} is no flag; write {command} --FIELD VALUE ..., such as --train.steps 10")
    yield from found


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of all fields that are no configs themselves, with their types."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{name}.")
        else:
            yield name, hints[field.name]


def _unknown(config: Any, name: str, known: Mapping[str, Any], command: str) -> str:
    """Where a name stops to fit, and what would fit there."""
    path, depth, owner, kinds = name.split("."), 0, config, []
    while depth < len(path) and dataclasses.is_dataclass(inner := getattr(owner, path[depth], None)):
        kinds = _kinds(get_type_hints(type(owner))[path[depth]])
        owner, depth = inner, depth + 1
    where, kind = ".".join(path[:depth]), type(owner).__name__
    if depth == len(path):
        return (
            f"--{name} is a group of fields; set one: {', '.join(f'--{f}' for f in known if f.startswith(name + '.'))}"
        )
    part = path[depth]
    if part in fields(type(owner)):
        return f"--{name}: {'.'.join(path[: depth + 1])} is one field, without parts; see {command} --help"
    if having := [kind.__name__ for kind in kinds if part in fields(kind)]:
        return (
            f"--{name}: {where} is {kind} in this config, which has no field {part!r}; {' and '.join(having)} "
            f"{'has' if len(having) == 1 else 'have'} it. Flags change fields, not kinds: for another kind, call or "
            f"write another config function, with {path[depth - 1]}={having[0]}(...)"
        )
    same = sorted(field for field in known if field.rpartition(".")[2] == path[-1])
    offered = f"did you mean {' or '.join(same)}?" if same else nearest(name, known)
    return f"--{name}: {f'{where} ({kind})' if where else 'the config'} has no field {part!r}; {offered}"


def _cause(error: BaseException | None) -> Fault | None:
    """What a config itself said of a value that it cannot have, and the parser answered by leaving."""
    while error is not None and not isinstance(error, Fault):
        error = error.__context__
    return error


def _check(config: Any, name: str, words: list[str], hint: Any, command: str) -> None:
    """Raises if it is this flag that cannot be read."""
    try:
        with redirect_stderr(io.StringIO()):
            _parsed(config, words, command)
    except SystemExit as error:
        given = [*([words[0].partition("=")[2]] if "=" in words[0] else []), *words[1:]]
        said = f"not {' '.join(map(repr, given))}" if given else "and nothing follows it"
        raise Fault(f"--{name} takes {_wanted(hint)}, {said}") from error


def _wanted(hint: Any) -> str:
    """A type in words."""
    kinds, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if origin is tuple:
        return "any number of words"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "pairs of words, such as question prompt answer completion"
    if origin in (Union, UnionType):
        return " or ".join("None" if kind is NoneType else _wanted(kind) for kind in kinds)
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _kinds(hint: Any) -> list[type]:
    """The config types that a field may hold."""
    return [kind for kind in (get_args(hint) or (hint,)) if dataclasses.is_dataclass(kind) and isinstance(kind, type)]
