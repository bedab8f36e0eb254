# SPDX-License-Identifier: Apache-2.0
"""Compressed files, unpacked once: rows are read at random, which a compressed stream does not allow."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from jaxpost.data.sources.record import check_file
from jaxpost.data.sources.stored import identity, kept, note
from jaxpost.faults import Fault

SUFFIXES = (".gz", ".zst")
CHUNK = 4 << 20


def unpacked(path: Path, name: str = "") -> Path:
    """The file itself, or what a `.gz` or `.zst` file holds: decompressed into the cache at its first use."""
    if path.suffix not in SUFFIXES:
        return path
    check_file(path)
    return kept(identity(path), path.stem, lambda to: _unpack(path, to, name or str(path)))


def _unpack(path: Path, to: Path, name: str) -> None:
    size = path.stat().st_size
    chunks = _gzip(path) if path.suffix == ".gz" else _zstandard(path)
    with open(to, "wb") as plain:
        while True:
            try:
                chunk, at = next(chunks)
            except StopIteration:
                return
            except (EOFError, OSError, zlib.error) as error:
                raise Fault(f"{name} is damaged, or no {path.suffix[1:]} data: {error}; get it again") from None
            plain.write(chunk)
            note(f"unpacking {name}", at, size)


def _gzip(path: Path) -> Iterator[tuple[bytes, int]]:
    """The plain text piece by piece, and how much of the file it took."""
    with open(path, "rb") as packed, gzip.GzipFile(fileobj=packed) as stream:
        while chunk := stream.read(CHUNK):
            yield chunk, packed.tell()


def _zstandard(path: Path) -> Iterator[tuple[bytes, int]]:
    import pyarrow  # here, because it takes a while and most runs do without

    with pyarrow.OSFile(str(path)) as packed, pyarrow.CompressedInputStream(packed, "zstd") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk, packed.tell()
