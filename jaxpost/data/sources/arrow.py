# SPDX-License-Identifier: Apache-2.0
"""Arrow files, data sets that Hugging Face's `datasets` saved, and Parquet: tables of columns, on disk."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpost.data.sources.record import Record, Rows, check_file
from jaxpost.data.sources.stored import identity, kept, note
from jaxpost.faults import Fault

HELD = 1 << 30  # bytes of unpacked row groups that a Parquet file may keep in memory


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
    """An Arrow file, in the stream or the file format, mapped: memory holds what is looked at."""

    def __init__(self, path: str | Path, name: str = ""):
        path = Path(path)
        check_file(path)
        self._batches = _batches(path, name or str(path))
        super().__init__(path, name or str(path), [batch.num_rows for batch in self._batches])

    def __reduce__(self) -> Any:
        return ArrowRows, (self.files[0], self.name)

    def _block(self, number: int) -> Any:
        return self._batches[number]


def _batches(path: Path, name: str) -> list[Any]:
    import pyarrow

    mapped = pyarrow.memory_map(str(path))
    try:
        if mapped.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(mapped)
            return [file.get_batch(i) for i in range(file.num_record_batches)]
        mapped.seek(0)
        return list(pyarrow.ipc.open_stream(mapped))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise Fault(f"{name} is damaged, or no Arrow file: {_first_line(error)}") from None


class ParquetRows(Table):
    """A Parquet file. Its row groups are unpacked when a row of theirs is asked for, and kept up to `HELD` bytes."""

    def __init__(self, path: str | Path, name: str = ""):
        import pyarrow
        import pyarrow.parquet

        path = Path(path)
        check_file(path)
        try:
            metadata = pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise Fault(f"{name or path} is damaged, or no Parquet file: {_first_line(error)}") from None
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        self._sizes = [group.total_byte_size for group in groups]
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._file: tuple[int, Any] | None = None
        super().__init__(path, name or str(path), [group.num_rows for group in groups])

    def __reduce__(self) -> Any:
        return ParquetRows, (self.files[0], self.name)

    def _block(self, number: int) -> Any:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        while self._held and sum(self._sizes[i] for i in self._held) + self._sizes[number] > HELD:
            self._held.popitem(last=False)
        self._held[number] = self._group(number)
        return self._held[number]

    def _group(self, number: int) -> Any:
        import pyarrow
        import pyarrow.parquet

        if self._file is None or self._file[0] != os.getpid():  # a handle does not survive a fork
            self._file = os.getpid(), pyarrow.parquet.ParquetFile(self.files[0], memory_map=True)
        try:
            return self._file[1].read_row_group(number, use_threads=False).combine_chunks()
        except (pyarrow.ArrowException, OSError) as error:
            raise Fault(f"{self.name}: row group {number + 1} is damaged: {_first_line(error)}") from None


def parquet(path: Path, name: str = "") -> Table:
    """The rows of a Parquet file. One whose row groups do not all fit into memory is written to the cache as an Arrow
    file, once: in a shuffled order every row would unpack a row group."""
    rows = ParquetRows(path, name)
    if sum(rows._sizes) <= HELD:
        return rows
    return ArrowRows(kept(identity(path), path.stem + ".arrow", lambda to: _rewrite(rows, to)), rows.name)


def _rewrite(rows: ParquetRows, to: Path) -> None:
    import pyarrow

    writer = None
    with pyarrow.OSFile(str(to), "wb") as file:
        for number in range(len(rows._sizes)):
            table = rows._group(number)
            writer = writer or pyarrow.ipc.new_stream(file, table.schema)
            writer.write_table(table, max_chunksize=1024)
            note(f"unpacking {rows.name}", number + 1, len(rows._sizes))
        if writer:
            writer.close()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
