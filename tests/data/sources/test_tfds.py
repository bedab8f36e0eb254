# SPDX-License-Identifier: Apache-2.0
"""Prepared TFDS data sets, without TensorFlow."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.rows.shapes import Dialogue, normalise
from jaxpost.data.sources import TfdsRows, checksums, read, tfds
from jaxpost.faults import Fault
from tests.conftest import ROOT

C4 = ("c4", "en")
EXAMPLES = [
    {
        "text": f"ünö {i}",
        "kind": i % 2,
        "weight": i / 2,
        "words": [f"w{j}" for j in range(i)],
        "messages": [{"role": "user", "content": str(j)} for j in range(i + 1)],
        "nested": {"ids": list(range(i)), "flag": bool(i % 2)},
    }
    for i in range(7)
]


def crc(data):
    return checksums.crc32c(np.frombuffer(data, np.uint8)[None])


def framed(record):
    """One record of a TFRecord file."""

    def masked(data):
        return int(checksums.masked(crc(data))[0])

    head = struct.pack("<Q", len(record))
    return head + struct.pack("<I", masked(head)) + record + struct.pack("<I", masked(record))


def prepared(directory, kind, records, features, lengths=(4, 3), split="train"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "features.json").write_text(json.dumps(features))
    info = {
        "name": "talk",
        "version": "1.0.0",
        "fileFormat": kind,
        "moduleName": "m",
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(length) for length in lengths],
            }
        ],
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    start = 0
    for i, length in enumerate(lengths):
        path = directory / f"talk-{split}.{kind}-{i:05d}-of-{len(lengths):05d}"
        some = records[start : start + length]
        if kind == "tfrecord":
            path.write_bytes(b"".join(map(framed, some)))
        else:
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in some:
                writer.write(record)
            writer.close()
        start += length
    return directory


@pytest.fixture(scope="module")
def talk():
    """Rows with features of every kind, serialised as TFDS does, and the features' description."""
    from tensorflow_datasets import features as kinds

    features = kinds.FeaturesDict(
        {
            "text": kinds.Text(),
            "kind": kinds.ClassLabel(num_classes=2),
            "weight": np.float32,
            "words": kinds.Sequence(kinds.Text()),
            "messages": kinds.Sequence({"role": kinds.Text(), "content": kinds.Text()}),
            "nested": {"ids": kinds.Sequence(np.int64), "flag": np.bool_},
        }
    )
    records = [features.serialize_example(features.encode_example(example)) for example in EXAMPLES]
    return records, features.to_json()


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_features_of_every_kind(tmp_path, talk, kind):
    directory = prepared(tmp_path / "talk" / "1.0.0", kind, *talk)
    rows = read(str(directory))
    assert isinstance(rows, TfdsRows) and len(rows) == 7
    for row, example in zip(rows, EXAMPLES, strict=True):
        columns = {name: [m[name] for m in example["messages"]] for name in ("role", "content")}
        assert row == example | {"messages": columns}
        assert normalise(row) == Dialogue(tuple(example["messages"]))
    assert rows[6].where.endswith(f"talk-train.{kind}-00001-of-00002: row 3")
    part = pickle.loads(pickle.dumps(read(str(directory), "train[50%:]")))
    assert list(part) == list(rows)[4:] and part[0].where == rows[4].where


@given(st.binary(max_size=40), st.integers(1, 9))
def test_checksums_do_not_depend_on_how_they_are_cut(data, block):
    whole = crc(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "BLOCK", block)
        assert crc(data) == whole


def test_checksums_are_those_of_the_standard():
    """RFC 3720, B.4, and the check value of the catalogue of CRC algorithms."""
    for data, value in (
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ):
        assert crc(data) == value


def test_damage_is_found(tmp_path, talk):
    directory = prepared(tmp_path, "tfrecord", *talk)
    path = directory / "talk-train.tfrecord-00000-of-00002"
    whole = path.read_bytes()
    second = len(framed(talk[0][0]))
    path.write_bytes(whole[: second + 20] + bytes([whole[second + 20] ^ 1]) + whole[second + 21 :])
    rows = TfdsRows(directory)
    assert rows[0]["text"] == "ünö 0"
    with pytest.raises(Fault, match="00000-of-00002: record 2 is damaged: its checksum"):
        rows[1]
    for content, said in (
        (whole[:-3], "ends in the middle of record 4"),
        (whole[:second] + b"\xff" + whole[second + 1 :], "record 2 is damaged, or this is no TFRecord file"),
        (whole[:second], r"has 1 records, and 4 by .*dataset_info\.json"),
    ):
        path.write_bytes(content)
        with pytest.raises(Fault, match=said):
            TfdsRows(directory)
    path.unlink()
    with pytest.raises(Fault, match="lacks talk-train.tfrecord-00000-of-00002"):
        TfdsRows(directory)


def test_data_sets_that_cannot_be_read(tmp_path, talk):
    directory = prepared(tmp_path / "talk" / "1.0.0", "tfrecord", *talk)
    with pytest.raises(Fault, match="no split 'tran': did you mean train.*A part of one is written"):
        TfdsRows(directory, "tran")
    with pytest.raises(Fault, match="no data set 'tolk' in .*did you mean talk"):
        tfds.find(tmp_path, "tolk")
    with pytest.raises(Fault, match="no data set 'talk:2.0.0'.*did you mean 1.0.0"):
        tfds.find(tmp_path, "talk:2.0.0")
    (directory / "talk-train.tfrecord-00000-of-00002").write_bytes(framed(b"no example") * 4)
    with pytest.raises(Fault, match=r"00000-of-00002: row 2: not as features\.json declares it"):
        TfdsRows(directory)[1]
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(
        Fault, match="is prepared as riegeli, which cannot be read here; prepare it as array_record or tfr"
    ):
        TfdsRows(directory)
    info.write_text("{")
    with pytest.raises(Fault, match="cannot be read as a TFDS data set"):
        TfdsRows(directory)
    info.unlink()
    with pytest.raises(Fault, match="no prepared data set"):
        tfds.find(tmp_path, "talk")


def test_the_newest_version_is_found(tmp_path, talk):
    for version in ("1.2.0", "1.10.0"):
        prepared(tmp_path / "talk" / "en" / version, "tfrecord", *talk)
    for name, version in (("talk", "1.10.0"), ("talk/en", "1.10.0"), ("talk/en:1.2.0", "1.2.0")):
        assert tfds.find(tmp_path, name) == tmp_path / "talk" / "en" / version
    shutil.copytree(tmp_path / "talk" / "en", tmp_path / "talk" / "de")
    with pytest.raises(Fault, match="name one of its configs: de, en"):
        tfds.find(tmp_path, "talk")


def test_both_formats_of_a_real_data_set_are_the_same(shared_data):
    folder = shared_data / "tfds" / "c4" / "en"
    for split, count in (
        ("train", 1000),
        ("validation", 200),
        ("train[:90%]", 900),
        ("train[-10:]+validation[:5]", 15),
    ):
        one, other = TfdsRows(folder / "3.0.1", split), TfdsRows(folder / "3.0.2", split)
        assert len(one) == len(other) == count
        assert list(one) == list(other) and all(isinstance(row["text"], str) for row in one)
    assert tfds.find(shared_data / "tfds", "c4") == folder / "3.0.2"


WITHOUT = """
import sys
from jaxpost.data.sources import read
rows = [read(path)[0] for path in sys.argv[1:]]
assert rows[0] == rows[1] and "text" in rows[0]
assert "jax" not in sys.modules and "tensorflow" not in sys.modules
"""


def test_neither_tensorflow_nor_jax_is_imported(tmp_path, talk):
    paths = [str(prepared(tmp_path / kind, kind, *talk)) for kind in ("tfrecord", "array_record")]
    (tmp_path / "tensorflow.py").write_text("raise ImportError('tensorflow is imported')")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *paths], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
