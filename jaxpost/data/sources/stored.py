# SPDX-License-Identifier: Apache-2.0
"""What is made once from a source and kept: decompressed files, downloads. And a word about work that takes a while."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from jaxpost.faults import Fault

# Told what is being done, and how much of how much is done (0 of how much: unknown).
Watcher = Callable[[str, int, int], None]
_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Within it, long work on sources (finding lines, decompressing, downloading) reports to the watcher."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def note(what: str, done: int, of: int) -> None:
    if watcher := _WATCHER.get():
        watcher(what, done, of)


def folder() -> Path:
    """Where things are kept: `$JAXPOST_CACHE`, or `jaxpost` in the user's cache directory."""
    given = os.environ.get("JAXPOST_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "jaxpost"


def identity(path: Path) -> str:
    """What tells a file from the same one changed: its path, size and time of change."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def kept(of: str, name: str, make: Callable[[Path], None]) -> Path:
    """The file or directory `name` that `make` wrote, now or in an earlier run, from what `of` identifies.

    It is written under another name and then moved, so that a run that is killed, or another that does the same at the
    same time, never leaves half of it.
    """
    place = folder() / "sources" / hashlib.sha256(of.encode()).hexdigest()[:20] / name
    if place.exists():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as making:
            made = Path(making) / name
            make(made)
            try:
                os.replace(made, place)
            except OSError:
                if not place.is_dir():  # another run was faster with a directory
                    raise
    except OSError as error:
        raise Fault(
            f"cannot keep {name} in {place.parent} ({error.strerror or error}); choose another place for it with the "
            "environment variable JAXPOST_CACHE"
        ) from error
    return place
