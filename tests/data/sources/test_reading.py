# SPDX-License-Identifier: Apache-2.0
"""Paths of every kind: compressed, patterns, directories, elsewhere."""

import gzip
import json
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import fsspec
import pyarrow
import pytest

from jaxpost.data.rows.shapes import shape_of
from jaxpost.data.sources import read, watched
from jaxpost.faults import Fault


def body(start, stop):
    return "".join(json.dumps({"text": str(i)}) + "\n" for i in range(start, stop)).encode()


def texts(rows):
    return [row["text"] for row in rows]


@pytest.fixture
def folder(tmp_path):
    """A directory with the splits in its files' names, and what else lies about in such directories."""
    place = tmp_path / "set"
    (place / ".git").mkdir(parents=True)
    for name, start, stop in (("train-0-of-2", 0, 3), ("train-1-of-2", 3, 5), ("validation", 5, 7), ("my_test", 7, 8)):
        (place / f"{name}.jsonl").write_bytes(body(start, stop))
    (place / "dataset_infos.json").write_text("{}")
    (place / ".git" / "train.jsonl").write_text("{}")
    return place


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_unpacked_once(tmp_path, cache, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    pack = gzip.compress if suffix == ".gz" else lambda b: pyarrow.compress(b, codec="zstd", asbytes=True)
    path.write_bytes(pack(body(0, 3)) + pack(body(3, 5)))  # in two members, as parallel compressors write
    said = []
    with watched(lambda *words: said.append(words)):
        rows = read(str(path))
    assert texts(rows) == list("01234") and rows[4].where == f"{path}:5"
    assert any(what == f"unpacking {path}" and done == of for what, done, of in said)
    (made,) = cache.rglob("a.jsonl")
    before = made.stat().st_mtime_ns
    assert texts(read(str(path))) == list("01234") and made.stat().st_mtime_ns == before
    path.write_bytes(pack(body(7, 9)))
    assert texts(read(str(path))) == list("78"), "a file that changed is unpacked anew"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_archives_leave_nothing_behind(tmp_path, cache, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    whole = gzip.compress(body(0, 500)) if suffix == ".gz" else pyarrow.compress(body(0, 500), "zstd", asbytes=True)
    for content in (whole[:-20], b"no archive at all"):
        path.write_bytes(content)
        with pytest.raises(Fault, match=rf"a\.jsonl{suffix} is damaged, or no {suffix[1:]} data"):
            read(str(path))
        assert not [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body(0, 1)))
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "file"))
    with pytest.raises(Fault, match="cannot keep a.jsonl in .*JAXPOST_CACHE"):
        read(str(tmp_path / "a.jsonl.gz"))


def test_directories_and_patterns(folder):
    assert texts(read(str(folder))) == list("01234"), "train, where the names tell splits apart"
    assert texts(read(str(folder), otherwise=("validation",))) == list("56")
    assert texts(read(str(folder), "test")) == ["7"] and texts(read(str(folder), "train[40%:]")) == list("234")
    assert texts(read(f"{folder}/t*.jsonl")) == list("01234") and len(read(f"{folder}/*.jsonl")) == 8
    assert texts(read(f"{folder}/*.jsonl", "validation")) == list("56")
    assert texts(read((f"{folder}/my_test.jsonl", f"{folder}/validation.jsonl"))) == list("756")
    joined = read(str(folder))
    assert joined[3].where == f"{folder}/train-1-of-2.jsonl:1" and len(joined.files) == 2
    with pytest.raises(IndexError):
        joined[5]
    with pytest.raises(Fault, match="has no split 'tain'; did you mean train"):
        read(str(folder), "tain")
    assert texts(read(f"{folder}/validation.jsonl", "validation[1:]")) == ["6"]
    with pytest.raises(Fault, match="is one file, in which there is no split 'test'"):
        read(f"{folder}/validation.jsonl", "test")
    with pytest.raises(Fault, match="has the splits test, train, validation, and not dev; say which to read"):
        read(str(folder), otherwise=("dev",))
    with pytest.raises(Fault, match="no file fits"):
        read(f"{folder}/*.parquet")


def test_what_is_no_rows(tmp_path, written):
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "empty", "holds no rows: neither files that end in .parquet"),
        (written("a.yaml", "x"), r"a\.yaml: rows are read from .parquet.*prepared TFDS"),
        (written("a.jsnl", "x"), r"did you mean \.json(l)?"),
        (tmp_path / "none.jsonl.gz", "no file .*none.jsonl.gz"),
        (tmp_path / "none", "no file .*none"),
    ):
        with pytest.raises(Fault, match=said):
            read(str(path))
    with pytest.raises(Fault, match="no paths of rows"):
        read(())


def test_files_elsewhere(cache):
    store = fsspec.filesystem("memory")
    store.pipe(
        {
            "/bucket/set/train.jsonl": body(0, 3),
            "/bucket/set/test.jsonl": body(3, 4),
            "/bucket/a.jsonl.gz": gzip.compress(body(0, 2)),
        }
    )
    try:
        said = []
        with watched(lambda *words: said.append(words)):
            rows = read("memory://bucket/set/train.jsonl")
        assert texts(rows) == list("012") and rows[0].where == "memory://bucket/set/train.jsonl:1"
        assert said[0] == ("downloading memory://bucket/set/train.jsonl", len(body(0, 3)), len(body(0, 3)))
        assert texts(read("memory://bucket/a.jsonl.gz")) == list("01")
        assert texts(read("memory://bucket/set", "test")) == ["3"]
        assert texts(read("memory://bucket/set/t*.jsonl")) == list("012")
        with pytest.raises(Fault, match="no file memory://bucket/none"):
            read("memory://bucket/none.jsonl")
    finally:
        store.rm("/bucket", recursive=True)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def test_files_on_the_web(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body(0, 3)))
    with HTTPServer(("localhost", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            url = f"http://localhost:{server.server_port}"
            rows = read(f"{url}/a.jsonl.gz")
            assert texts(rows) == list("012") and rows[2].where == f"{url}/a.jsonl.gz:3"
            with pytest.raises(Fault, match=r"no file http.*/b\.jsonl: 404"):
                read(f"{url}/b.jsonl")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://bucket/a.jsonl", "to read gs:// paths.*gcsfs"),
        ("s3://bucket/a.jsonl", "to read s3:// paths.*s3fs"),
        ("gopher://bucket/a.jsonl", "no way to read gopher://"),
        ("https://localhost:9/a.jsonl", "https://localhost:9/a.jsonl cannot be reached .*check the network"),
    ],
)
def test_places_out_of_reach(url, said, monkeypatch):
    for name in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Fault, match=said):
        read(url)


def test_real_files(shared_data):
    questions, meanings = read(str(shared_data / "gsm8k")), read(str(shared_data / "e2e_nlg" / "dev.csv"))
    assert len(questions) == 7473 and set(questions[7472]) == {"question", "answer"}
    assert questions[7472].where.endswith("train.jsonl:7473")
    assert len(meanings) == 4672 and set(meanings[0]) == {"mr", "ref"}
    assert meanings[4671].where.endswith("dev.csv:4673")
    pairs = read(str(shared_data / "hh_rlhf"))
    assert len(pairs) == 1500 and {shape_of(row) for row in pairs} == {"preference"}
    assert pairs[1499].where.endswith("harmless.jsonl.gz:1500")
