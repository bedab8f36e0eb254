# SPDX-License-Identifier: Apache-2.0
"""Data sets of more files than a process may open."""

import os
import pickle
import subprocess
import sys

import pytest

from jaxpost.data.sources import csv, jsonl, mapped
from jaxpost.faults import Fault
from tests.conftest import ROOT

MANY = """
import resource, struct, sys
from pathlib import Path
import numpy as np, pyarrow, pyarrow.parquet
from array_record.python.array_record_module import ArrayRecordWriter
from jaxpost.data.sources import read
from jaxpost.data.sources.checksums import crc32c, masked
from jaxpost.data.sources.tfds import ArrayRecords
from jaxpost.data.sources.tfrecord import TfRecords

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
place, count = Path(sys.argv[1]), 300
table = pyarrow.table({"text": ["a"]})

def framed(record):
    sum_of = lambda data: int(masked(crc32c(np.frombuffer(data, np.uint8)[None]))[0])
    head = struct.pack("<Q", len(record))
    return head + struct.pack("<I", sum_of(head)) + record + struct.pack("<I", sum_of(record))

def arrow(path):
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)

def records(path):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"a")
    writer.close()

makes = {
    "jsonl": lambda path: path.write_text('{"text": "a"}'),
    "csv": lambda path: path.write_text("text\\na\\n"),
    "parquet": lambda path: pyarrow.parquet.write_table(table, path),
    "arrow": arrow,
    "tfrecord": lambda path: path.write_bytes(framed(b"a")),
    "array_record": records,
}
readers = {"tfrecord": TfRecords, "array_record": ArrayRecords}
for kind, make in makes.items():
    (place / kind).mkdir()
    paths = [place / kind / f"{i}.{kind}" for i in range(count)]
    for path in paths:
        make(path)
    if kind in readers:
        assert [rows[0] for rows in map(readers[kind], paths)] == [b"a"] * count
        opened = [readers[kind](path) for path in paths]
        assert [rows[0] for rows in opened] == [b"a"] * count, kind
    else:
        rows = read(str(place / kind))
        assert [row["text"] for row in rows] == ["a"] * count == [row["text"] for row in rows], kind
"""


def test_more_files_than_may_be_open(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", [jsonl, csv])
def test_a_file_that_changed_is_told_of(written, source):
    path = written("a.txt", '"text"\n{"text": "b"}\n{"text": "c"}\n')
    rows = pickle.loads(pickle.dumps(source(path)))
    path.write_text('"text"\n{"text": "longer"}\n')
    with pytest.raises(Fault, match=r"a\.txt has changed since it was opened"):
        rows[0]
    path.unlink()
    with pytest.raises(Fault, match=r"a\.txt can no longer be read"):
        rows[0]


def test_what_is_open_is_shared_and_bounded(written):
    path = written("a.jsonl", '{"text": "a"}')
    before = mapped._map.cache_info()
    assert [jsonl(path)[0]["text"] for _ in range(3)] == ["a"] * 3
    after = mapped._map.cache_info()
    assert after.misses - before.misses == 1 and after.maxsize == 128
