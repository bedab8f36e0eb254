# SPDX-License-Identifier: Apache-2.0
"""What is made once on a host and kept: decompressed files, downloads, whatever else is costly and follows from its
key. And a word about work that takes a while."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from jaxpost.faults import Fault

# Told what is being done, and how much of how much is done (0 of how much: unknown).
Watcher = Callable[[str, int, int], None]
_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
# What writing meets and reading does not; the system names no file with them.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class NotKept(Fault):
    """Nothing is wrong with what was to be kept, only with the place for it: `why` says what."""

    why = ""


class _NoLock(Exception):
    """The file system (or the system) has no locks."""


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
    """The file or directory `name` that `make` wrote, now or in an earlier run, from what `of` identifies."""
    key = hashlib.sha256(f"{of}\0{name}".encode()).hexdigest()[:20]

    def waiting() -> None:
        note(f"waiting for another process that makes {name}", 0, 0)

    root = folder() / "sources"
    try:
        # Without locks several may make it at once, and the first wins: better than a source that cannot be read.
        return once(root, key, lambda draft: make(draft / name), waiting, name, locked=False) / name
    except NotKept as error:
        raise NotKept(
            f"cannot keep {name} in {root} ({error.why}); free some space, or choose another place for it with the "
            "environment variable JAXPOST_CACHE"
        ) from error


def once(
    root: Path,
    key: str,
    make: Callable[[Path], None],
    waiting: Callable[[], None] = lambda: None,
    holds: str = "",
    locked: bool = True,
) -> Path:
    """The folder of an entry, made by `make(draft folder)` if it (or what it `holds`) is not there.

    It appears whole or not at all. Of several processes that ask for it at once one makes it and the others wait (and
    are told so by `waiting`); if that one dies, the next takes over: the lock is the system's, and goes with its
    process. Where there are no locks it is `NotKept`, unless it need not be `locked`. What `make` cannot read is its
    own affair; what it cannot write is `NotKept`.
    """
    entry = root / key
    if (entry / holds).exists():
        return entry
    draft = root / f"{key}.draft"
    with keeping(root):
        root.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(root / f"{key}.lock", waiting):
            if not (entry / holds).exists():
                shutil.rmtree(entry, ignore_errors=True)  # what it held was removed by hand
                shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
                _make(draft, entry, make)
    except _NoLock as error:
        if locked:
            raise _not_kept(root, f"files cannot be locked there: {error}") from error
        with keeping(root):
            draft = Path(tempfile.mkdtemp(dir=root, prefix=f"{key}."))
        _make(draft, entry, make)
    return entry


def _make(draft: Path, entry: Path, make: Callable[[Path], None]) -> None:
    try:
        with keeping(draft.parent):
            draft.mkdir(exist_ok=True)
        try:
            make(draft)
        except OSError as error:
            named = isinstance(error.filename, str | os.PathLike) and draft in Path(error.filename).parents
            if not named and error.errno not in FULL:
                raise  # of what it read
            raise _not_kept(draft.parent, error.strerror or str(error)) from error
        with keeping(draft.parent):
            try:
                draft.rename(entry)
            except OSError:
                if not entry.is_dir():  # another process was faster
                    raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def keeping(root: Path) -> Iterator[None]:
    """What is only written within it, and cannot be, is `NotKept`."""
    try:
        yield
    except OSError as error:
        raise _not_kept(error.filename or root, error.strerror or str(error)) from error


def _not_kept(where: object, why: str) -> NotKept:
    error = NotKept(
        f"cannot keep {where} for later runs ({why}); free some space, or name another folder in the environment "
        "variable JAXPOST_CACHE"
    )
    error.why = why
    return error


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    try:
        import fcntl  # here, because not every system has it, and reading what is there takes no lock
    except ImportError as error:
        raise _NoLock(str(error)) from error

    with keeping(path.parent):
        file = path.open("w")
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise _NoLock(error.strerror or str(error)) from error
        yield  # closing the file lets go of the lock; the empty file stays, or two could each hold "the" lock
