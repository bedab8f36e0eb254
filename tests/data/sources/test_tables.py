# SPDX-License-Identifier: Apache-2.0
"""JSON documents, Arrow, Parquet, and what Hugging Face's datasets saves."""

import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from jaxpost.data.shapes import Dialogue, normalise
from jaxpost.data.sources import ArrowRows, JsonRows, ParquetRows, arrow, read
from jaxpost.faults import Fault

ROWS = [{"text": f"row {i}", "n": i, "list": [{"role": "user", "content": "x" * i}]} for i in range(10)]
TABLE = pyarrow.Table.from_pylist(ROWS)


def stream(path, table, rows=4):
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def saved(directory, table, parts=2):
    """As `Dataset.save_to_disk` writes it."""
    directory.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{parts:05d}.arrow" for i in range(parts)]
    step = -(-table.num_rows // parts)
    for i, name in enumerate(names):
        stream(directory / name, table.slice(i * step, step))
    (directory / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (directory / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize("kind", ["stream", "file", "parquet", "large parquet"])
def test_rows_by_index(tmp_path, kind, monkeypatch):
    path = tmp_path / ("a.parquet" if "parquet" in kind else "a.arrow")
    if "parquet" in kind:
        pyarrow.parquet.write_table(TABLE, path, row_group_size=3)
        if kind == "large parquet":
            monkeypatch.setattr(arrow, "HELD", 1)
    elif kind == "stream":
        stream(path, TABLE)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, TABLE.schema) as writer:
            writer.write_table(TABLE, max_chunksize=4)
    rows = read(str(path))
    assert len(rows) == 10 and [rows[i] for i in (9, 0, 3, 2)] == [ROWS[i] for i in (9, 0, 3, 2)]
    assert list(rows) == ROWS and rows[9].where == f"{path}: row 10"
    assert list(pickle.loads(pickle.dumps(rows))) == ROWS
    assert isinstance(rows, ArrowRows if kind != "parquet" else ParquetRows)


def test_a_parquet_file_keeps_few_row_groups(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet", row_group_size=1)
    rows = ParquetRows(tmp_path / "a.parquet")
    monkeypatch.setattr(arrow, "HELD", 2 * max(rows._sizes))
    read_groups = []
    monkeypatch.setattr(rows, "_group", lambda n, real=rows._group: (read_groups.append(n), real(n))[1])
    assert [rows[i]["n"] for i in (0, 1, 0, 2, 0, 1)] == [0, 1, 0, 2, 0, 1]
    assert read_groups == [0, 1, 2, 1], "the one used longest ago is the one that goes"


def test_a_saved_data_set(tmp_path):
    saved(tmp_path / "one", TABLE)
    rows = read(str(tmp_path / "one"))
    assert list(rows) == ROWS and rows[5].where.endswith("one/data-00001-of-00002.arrow: row 1")
    saved(tmp_path / "both" / "train", TABLE)
    saved(tmp_path / "both" / "test", TABLE.slice(8))
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    both = str(tmp_path / "both")
    assert [len(read(both)), len(read(both, "test")), len(read(both, "train[:50%]"))] == [10, 2, 5]
    assert list(read(both, "train[-3:-1]")) == ROWS[7:9]
    for split, said in (
        ("tset", r"no split 'tset'; did you mean test\?"),
        ("train[5", r"no split 'train\[5'"),
        ("train[a:]", "no part 'train.a:.'; write"),
        ("train[5:5]", "has 10 rows, of which"),
    ):
        with pytest.raises(Fault, match=said):
            read(both, split)
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(Fault, match="state.json is missing or damaged"):
        read(str(tmp_path / "one"))


@pytest.mark.parametrize(
    "whole",
    [
        ROWS,
        {"data": ROWS, "version": 1},
        {"text": [row["text"] for row in ROWS], "n": list(range(10)), "list": [row["list"] for row in ROWS]},
        {"train": ROWS, "test": ROWS[:2]},
    ],
)
def test_json_documents(written, whole):
    path = written("a.json", json.dumps(whole, indent=1))
    rows = read(str(path))
    assert list(rows) == ROWS and rows[4].where == f"{path}: row 5"
    if isinstance(whole, dict) and "test" in whole:
        assert len(read(str(path), "test")) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}\n{"a": 2}\n', r"a\.json:2: not JSON, Extra data.*call it \.jsonl"),
        ("[]", "holds no rows"),
        ('{"x": 5}', "this is an object with 'x'"),
        ('{"x": [1], "y": [1, 2]}', "columns must be of one length, and x has 1, y has 2"),
        ("5", "this is int"),
        (b'["\xff"]', r"not UTF-8 \(byte 3\)"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_json(written, content, said):
    with pytest.raises(Fault, match=said):
        JsonRows(written("a.json", content))
    with pytest.raises(Fault, match="row 1: a row must be an object with fields, not int"):
        JsonRows(written("b.json", "[1]"))[0]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_files_that_are_something_else(written, name):
    with pytest.raises(Fault, match="is damaged, or no (Parquet|Arrow) file"):
        read(str(written(name, "neither one nor the other, but long enough for a footer")))


def test_text_that_is_none(tmp_path):
    broken = pyarrow.array([b"fine", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    stream(tmp_path / "a.arrow", pyarrow.table({"text": broken}))
    rows = ArrowRows(tmp_path / "a.arrow")
    assert rows[0] == {"text": "fine"}
    with pytest.raises(Fault, match=r"row 2: not UTF-8 \(byte 1 of a value\)"):
        rows[1]


def test_messages_stored_as_columns(tmp_path):
    """As `Sequence` of older versions of datasets, and TFDS, store a list of objects."""
    table = pyarrow.Table.from_pylist([{"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}])
    stream(tmp_path / "a.arrow", table)
    said = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    assert normalise(ArrowRows(tmp_path / "a.arrow")[0]) == Dialogue(said)
