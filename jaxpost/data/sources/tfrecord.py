# SPDX-License-Identifier: Apache-2.0
"""TFRecord files without TensorFlow: where each record lies, and its bytes, checked.

A record is its length (8 bytes, little-endian), that length's masked checksum (4), the bytes, and theirs (4).
"""

from array import array
from pathlib import Path

import numpy as np

from jaxpost.data.sources.checksums import crc32c, masked
from jaxpost.data.sources.mapped import Mapped
from jaxpost.data.sources.record import check_file
from jaxpost.data.sources.stored import note
from jaxpost.faults import Fault

HEAD, TAIL = 12, 4  # bytes around a record
EVERY = 1 << 16  # records between two words about progress


class TfRecords:
    """The records of one file, mapped: memory holds an integer a record."""

    def __init__(self, path: Path):
        check_file(path)
        self._path, self._bytes = path, Mapped(path)
        self._starts = self._found()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        start = int(self._starts[index])
        mapped = self._bytes.whole()
        end = start + HEAD + int.from_bytes(mapped[start : start + 8], "little")
        body = mapped[start + HEAD : end]
        said = int.from_bytes(mapped[end : end + TAIL], "little")
        if masked(crc32c(np.frombuffer(body, np.uint8)[None]))[0] != said:
            raise Fault(f"{self._path}: record {index + 1} is damaged: its checksum is another; get the file again")
        return body

    def _found(self) -> np.ndarray:
        mapped, starts, at = self._bytes.whole(), array("q"), 0
        size = len(mapped)
        while at < size:
            starts.append(at)
            end = at + HEAD + int.from_bytes(mapped[at : at + 8], "little") + TAIL
            if end > size:
                # A damaged length leads anywhere: say what was damaged first, if not the end of the file.
                self._check_lengths(np.array(starts))
                raise Fault(f"{self._path} ends in the middle of record {len(starts)}; get the file again")
            at = end
            if len(starts) % EVERY == 0:
                note(f"finding the records of {self._path}", at, size)
        found = np.array(starts)
        self._check_lengths(found)
        return found

    def _check_lengths(self, starts: np.ndarray) -> None:
        whole = np.frombuffer(self._bytes.whole(), np.uint8)
        starts = starts[starts + HEAD <= len(whole)]
        for first in range(0, len(starts), EVERY):
            heads = whole[starts[first : first + EVERY, None] + np.arange(HEAD)]
            said = heads[:, 8:].copy().view("<u4")[:, 0]
            wrong = np.flatnonzero(masked(crc32c(heads[:, :8])) != said)
            if len(wrong):
                raise Fault(
                    f"{self._path}: record {first + int(wrong[0]) + 1} is damaged, or this is no TFRecord file: the "
                    "checksum of its length is another"
                )
