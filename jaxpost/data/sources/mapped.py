# SPDX-License-Identifier: Apache-2.0
"""Files as bytes that are read where they lie, of which few are open at a time: a data set may have more files than a
process may open."""

import mmap
from functools import lru_cache
from pathlib import Path

from jaxpost.faults import Fault

OPEN = 128  # files that stay open, of all sources together: half of the lowest limit that systems come with


class Mapped:
    """The bytes of a file, mapped when they are asked for. It pickles as the file's name."""

    def __init__(self, path: Path):
        self._path, self._stamp = path, _stamp(path)

    def __len__(self) -> int:
        return self._stamp[0]

    def __getitem__(self, part: slice) -> bytes:
        return self.whole()[part]

    def whole(self) -> mmap.mmap:
        """All of it. Whoever holds on to it keeps the file open."""
        try:
            same = _stamp(self._path) == self._stamp
            found = _map(self._path, self._stamp) if same else None
        except (OSError, ValueError) as error:  # ValueError: it is empty by now
            raise Fault(f"{self._path} can no longer be read: {error}") from error
        if found is None:
            raise Fault(
                f"{self._path} has changed since it was opened; start again, and leave it as it is while it is read"
            )
        return found


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(OPEN)  # what falls out is closed when nothing reads it any more
def _map(path: Path, stamp: tuple[int, int]) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
