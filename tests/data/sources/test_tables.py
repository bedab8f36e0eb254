# SPDX-License-Identifier: Apache-2.0
"""JSON documents, Arrow, Parquet, and what Hugging Face's datasets saves."""

import gc
import gzip
import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from jaxpost.data.rows.shapes import Dialogue, normalise
from jaxpost.data.sources import ArrowRows, Joined, JsonRows, ParquetRows, arrow, read
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


def held():
    return sum(table.nbytes for table in arrow._UNPACKED._held.values())


def test_parquet_files_keep_few_row_groups(tmp_path, monkeypatch):
    """All of them together: what is kept is bounded for the process, not for a file."""
    monkeypatch.setattr(arrow, "_UNPACKED", arrow.Unpacked())
    for name in "ab":
        pyarrow.parquet.write_table(TABLE, tmp_path / f"{name}.parquet", row_group_size=1)
    files = [ParquetRows(tmp_path / f"{name}.parquet") for name in "ab"]
    largest = max(files[0].group(i).nbytes for i in range(10))
    monkeypatch.setattr(arrow, "HELD", 2 * largest)
    groups = []
    for rows in files:
        monkeypatch.setattr(rows, "group", lambda n, real=rows.group: (groups.append(n), real(n))[1])
    wanted = [(0, 9), (1, 8), (0, 9), (0, 7), (1, 9), (0, 9), (0, 9)]
    assert [files[file][row]["n"] for file, row in wanted] == [row for _, row in wanted]
    assert groups == [9, 8, 7, 9, 9], "the one used longest ago is the one that goes"
    assert arrow._UNPACKED._bytes == held() <= arrow.HELD
    monkeypatch.undo()


def test_unpacked_row_groups_go_with_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "_UNPACKED", arrow.Unpacked())
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet")
    rows = read(str(tmp_path / "a.parquet"))
    assert rows[0]["n"] == 0 and held() > 0
    del rows
    gc.collect()
    assert not arrow._UNPACKED._held and not arrow._UNPACKED._sizes and arrow._UNPACKED._bytes == 0


def test_what_a_parquet_file_takes_is_not_what_its_footer_says(tmp_path, monkeypatch):
    """A column of few values is encoded as numbers: 16 KB here, and 4 MB in memory."""
    monkeypatch.setattr(arrow, "_UNPACKED", arrow.Unpacked())
    table = pyarrow.table({"text": ["the same long text " * 50] * 4000})
    for name in "ab":
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=1000)
    size = ParquetRows(tmp_path / "a.parquet").size()
    assert table.nbytes == pytest.approx(size, rel=0.01) and size > 100 * (tmp_path / "a.parquet").stat().st_size
    monkeypatch.setattr(arrow, "HELD", size + size // 2)
    rows = read(str(tmp_path))
    assert isinstance(rows, Joined) and [type(part) for part in rows._parts] == [ParquetRows, ArrowRows], (
        "one fits, and two do not"
    )
    assert all(rows[i]["text"] == rows[0]["text"] for i in range(0, 8000, 500))
    assert 0 < held() <= arrow.HELD
    spans = list(rows.spans(0, len(rows)))
    assert [span.file for span in spans] == [tmp_path / "a.parquet", tmp_path / "b.parquet"]


def test_where_no_row_group_fits_none_is_unpacked_to_know(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "_UNPACKED", arrow.Unpacked())
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet", row_group_size=5)
    monkeypatch.setattr(arrow, "HELD", ParquetRows(tmp_path / "a.parquet").encoded - 1)
    groups = []
    monkeypatch.setattr(
        ParquetRows, "group", lambda rows, n, real=ParquetRows.group: (groups.append(n), real(rows, n))[1]
    )
    assert list(read(str(tmp_path / "a.parquet"))) == ROWS == list(read(str(tmp_path / "a.parquet")))
    assert groups == [0, 1], "once, to write them as Arrow"


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
        {"train_sft": ROWS, "test_sft": ROWS[:2]},
        {"validation": ROWS, "labels": ["a", "b"]},
        {
            "text": [row["text"] for row in ROWS],
            "n": list(range(10)),
            "list": [row["list"] for row in ROWS],
            "dev": ROWS,
        },
    ],
)
def test_json_documents(written, whole):
    path = written("a.json", json.dumps(whole, indent=1))
    rows = read(str(path))
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS and rows[4].where == f"{path}: row 5"


def test_a_json_document_answers_for_the_splits_that_it_has(written, tmp_path):
    def some(name, count=2):
        return [{"text": f"{name} {i}"} for i in range(count)]

    both = written("both.json", json.dumps({"train": some("train"), "test": some("test"), "dev": some("dev")}))
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(both.read_bytes()))
    for path in map(str, (both, packed)):
        for split, otherwise, found in (
            ("", ("train",), "train"),
            ("", ("validation", "test"), "dev"),
            ("", ("test",), "test"),
            ("test", (), "test"),
            ("validation", (), "dev"),
            ("dev[1:]", (), "dev"),
        ):
            assert {row["text"].split()[0] for row in read(path, split, otherwise)} == {found}
    with pytest.raises(Fault, match=r"both.json has no split 'tset'; did you mean test\?"):
        read(str(both), "tset")
    pair = written("pair.json", json.dumps({"train": some("train"), "test": some("test")}))
    one = written("one.json", json.dumps({"train": some("train")}))
    two = written("two.json", json.dumps({"train_sft": some("a"), "train_dpo": some("b")}))
    assert read(str(two), "train_dpo")[0]["text"] == "b 0"
    rows = [
        written(f"rows{i}.json", json.dumps(w)) for i, w in enumerate((some("a"), {"data": some("a")}, {"text": ["a"]}))
    ]
    for path, split in ((pair, "validation"), (one, "test"), (one, "validation"), (two, "train"), (two, "test")):
        with pytest.raises(Fault, match=f"{path.name} has no split '{split}'"):
            read(str(path), split)
    for path in rows:
        assert len(read(str(path), "train")) == len(read(str(path)))
        with pytest.raises(Fault, match=f"{path.name} is one file, in which there is no split 'validation'"):
            read(str(path), "validation")
    assert len(read(str(written("my-test.json", "[{}]")), "test")) == 1, "by its name"
    with pytest.raises(Fault, match="two.json has the splits train_sft, train_dpo, and not train; say which"):
        read(str(two))


def test_a_directory_of_one_json_document_has_its_splits(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rows.json").write_text(json.dumps({"train": [{"text": "a"}] * 3, "test": [{"text": "b"}]}))
    directory = str(tmp_path / "set")
    assert [len(read(directory)), len(read(directory, "test")), len(read(directory, "", ("test",)))] == [3, 1, 1]
    assert len(read(f"{directory}/*.json", "test")) == 1
    with pytest.raises(Fault, match="has no split 'validation'"):
        read(directory, "validation")


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
