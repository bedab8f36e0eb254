# SPDX-License-Identifier: Apache-2.0
"""The import graph of the package, read from the source without importing it: `python tools/imports.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = ""  # the room of the package's own __init__.py


class Import(NamedTuple):
    """`file`, a file of `room`, imports the module `target` (absolute, dotted) in line `line`."""

    file: Path
    line: int
    room: str
    target: str


def room_of(package: Path, file: Path) -> str:
    """The first folder below the package, or the file's own name where it stands at the top."""
    first = file.relative_to(package).parts[0]
    return ROOT if first == "__init__.py" else first.removesuffix(".py")


def target_room(package: Path, target: str) -> str | None:
    """The room that a module belongs to; None where it is not of this package."""
    name, _, rest = target.partition(".")
    room = rest.partition(".")[0]
    if name != package.name:
        return None
    # `from package import __version__` is of the package itself: only what exists on disk is a room.
    return room if (package / room).is_dir() or (package / f"{room}.py").is_file() else ROOT


def imports(package: Path) -> Iterator[Import]:
    """Every import of every file, wherever it stands: at the top, in a function, under TYPE_CHECKING, by name."""
    for file in sorted(package.rglob("*.py")):
        room = room_of(package, file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
            for target in _targets(package, file, node):
                yield Import(file, getattr(node, "lineno", 0), room, target)


def _targets(package: Path, file: Path, node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            folders = file.relative_to(package.parent).parent.parts
            base = list(folders[: len(folders) + 1 - level]) if level else []
            prefix = ".".join(base + ([module] if module else []))
            return [f"{prefix}.{alias.name}" for alias in names]
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            return [name] if called in ("import_module", "__import__") else []
        case _:
            return []


def graph(package: Path) -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    edges = {room_of(package, file): set[str]() for file in package.rglob("*.py")}
    for found in imports(package):
        room = target_room(package, found.target)
        if room not in (None, ROOT, found.room):
            edges[found.room].add(room)
    return edges


if __name__ == "__main__":
    for room, imported in sorted(graph(Path(__file__).parent.parent / "jaxpost").items()):
        print(f"{room or '__init__':10} -> {', '.join(sorted(imported)) or '(nothing)'}")
