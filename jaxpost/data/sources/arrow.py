# SPDX-License-Identifier: Apache-2.0
"""Arrow files, data sets that Hugging Face's `datasets` saved, and Parquet: tables of columns, on disk."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost.data.sources.record import Record, Rows, Span, check_file
from jaxpost.data.sources.stored import identity, kept, note
from jaxpost.faults import Fault

HELD = 1 << 30  # bytes of unpacked row groups that all Parquet files together may keep in memory


class Table(Rows):
    """Rows of a table that lies in blocks. Subclasses say where the blocks end and read one of them."""

    def __init__(self, path: Path, name: str, counts: Sequence[int]):
        self.name, self.files = name, (path,)
        self._ends = np.cumsum(counts, dtype=np.int64)
        if not len(self):
            raise Fault(f"{name} holds no rows")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, index: int) -> Record:
        block = int(np.searchsorted(self._ends, index, side="right"))
        at = index - (int(self._ends[block - 1]) if block else 0)
        where = f"{self.name}: row {index + 1}"
        try:
            return Record(self._block(block).slice(at, 1).to_pylist()[0], where)
        except UnicodeDecodeError as error:
            raise Fault(f"{where}: not UTF-8 (byte {error.start + 1} of a value)") from None

    def _block(self, number: int) -> Any:
        raise NotImplementedError


class ArrowRows(Table):
    """An Arrow file, in the stream or the file format, mapped: memory holds what is looked at. `origin` is the file
    that it was made of, if another."""

    def __init__(self, path: str | Path, name: str = "", origin: Path | None = None):
        path, self._origin = Path(path), origin
        check_file(path)
        self._batches = _batches(path, name or str(path))
        super().__init__(path, name or str(path), [batch.num_rows for batch in self._batches])

    def __reduce__(self) -> Any:
        return ArrowRows, (self.files[0], self.name, self._origin)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        yield Span(self.name, (self._origin or self.files[0]).resolve(), "", start, stop)

    def _block(self, number: int) -> Any:
        return self._batches[number]


def _batches(path: Path, name: str) -> list[Any]:
    import pyarrow

    try:
        # What is mapped stays mapped behind the closed file: there may be more files than a process may keep open.
        with pyarrow.memory_map(str(path)) as mapped:
            if mapped.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(mapped)
                return [file.get_batch(i) for i in range(file.num_record_batches)]
            mapped.seek(0)
            return list(pyarrow.ipc.open_stream(mapped))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise Fault(f"{name} is damaged, or no Arrow file: {_first_line(error)}") from None


class ParquetRows(Table):
    """A Parquet file. Its row groups are unpacked when a row of theirs is asked for; those used last are kept."""

    def __init__(self, path: str | Path, name: str = ""):
        import pyarrow
        import pyarrow.parquet

        path = Path(path)
        check_file(path)
        try:
            self._metadata = pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise Fault(f"{name or path} is damaged, or no Parquet file: {_first_line(error)}") from None
        self.groups = self._metadata.num_row_groups
        groups = [self._metadata.row_group(i) for i in range(self.groups)]
        self.encoded = sum(group.total_byte_size for group in groups)
        super().__init__(path, name or str(path), [group.num_rows for group in groups])

    def __reduce__(self) -> Any:
        return ParquetRows, (self.files[0], self.name)

    def size(self) -> int:
        """About how many bytes all of it takes in memory. Its footer does not say: columns of few values are encoded
        as numbers. So the first row group is unpacked, and stands for the others."""
        return self._block(0).nbytes * len(self) // max(1, int(self._ends[0]))

    def _block(self, number: int) -> Any:
        return _UNPACKED.of(self, number)

    def group(self, number: int) -> Any:
        """A row group, unpacked."""
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.files[0], metadata=self._metadata, memory_map=True) as file:
                return file.read_row_group(number, use_threads=False).combine_chunks()
        except (pyarrow.ArrowException, OSError) as error:
            raise Fault(f"{self.name}: row group {number + 1} is damaged: {_first_line(error)}") from None


class Unpacked:
    """The row groups used last, of all Parquet files that are open: at most `HELD` bytes, but one at least."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._sizes: dict[int, int] = {}  # of files that are read from memory, as a whole
        self._bytes = 0
        self._lock = threading.RLock()  # training and evaluation read at the same time; rows may go at any time

    def of(self, rows: ParquetRows, number: int) -> Any:
        key = id(rows), number
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            if id(rows) not in self._sizes:
                self._sizes[id(rows)] = 0
                weakref.finalize(rows, self._forget, id(rows))
        table = rows.group(number)
        with self._lock:
            self._bytes += 0 if key in self._held else table.nbytes
            self._held[key] = table
            while self._bytes > HELD and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return table

    def promised(self, rows: ParquetRows) -> bool:
        """Whether all of a file fits beside the others; if so, room is kept for it."""
        if sum(self._sizes.values()) + rows.encoded > HELD:  # then nothing need be unpacked to know
            return False
        size = rows.size()
        with self._lock:
            fits = sum(self._sizes.values()) + size <= HELD
            self._sizes[id(rows)] = size if fits else 0
        return fits

    def _forget(self, rows: int) -> None:
        with self._lock:
            del self._sizes[rows]
            for key in [key for key in self._held if key[0] == rows]:
                self._bytes -= self._held.pop(key).nbytes


_UNPACKED = Unpacked()


def parquet(path: Path, name: str = "") -> Table:
    """The rows of a Parquet file. One that does not fit into memory beside those that are open is written to the cache
    as an Arrow file, once: in a shuffled order every row would unpack a row group."""
    rows = ParquetRows(path, name)
    if _UNPACKED.promised(rows):
        return rows
    return ArrowRows(kept(identity(path), path.stem + ".arrow", lambda to: _rewrite(rows, to)), rows.name, path)


def _rewrite(rows: ParquetRows, to: Path) -> None:
    import pyarrow

    writer = None
    with pyarrow.OSFile(str(to), "wb") as file:
        for number in range(rows.groups):
            table = rows.group(number)
            writer = writer or pyarrow.ipc.new_stream(file, table.schema)
            writer.write_table(table, max_chunksize=1024)
            note(f"unpacking {rows.name}", number + 1, rows.groups)
        if writer:
            writer.close()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
