# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from jaxpost.data.sources import csv, jsonl
from jaxpost.data.text import parts_of
from jaxpost.faults import Fault

ROWS = [{"text": "zero"}, {"text": "ünö 漢"}, {"text": "two\nlines"}]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "newline", "blank"])
def test_jsonl_rows_by_index(written, newline, last):
    lines = newline.join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    rows = jsonl(written("a.jsonl", lines + {"": "", "newline": newline, "blank": newline * 3}[last]))
    assert len(rows) == 3 and [dict(rows[i]) for i in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]]
    assert rows[-1] == ROWS[2] and list(rows) == ROWS


def test_a_row_knows_its_line_also_behind_blank_ones(written):
    path = written("a.jsonl", '{"text": "a"}\n\n  \n{"text": 5}\n')
    rows = jsonl(path)
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:4"]
    with pytest.raises(Fault, match=r"a\.jsonl:4: the field 'text' must be a string"):
        parts_of(rows[1])


def test_broken_lines_are_named_when_read(written):
    rows = jsonl(written("a.jsonl", b'{"text": "a"}\n{"text": "b"\n["text"]\n{"text": "\xff"}\n'))
    assert rows[0] == {"text": "a"}
    with pytest.raises(Fault, match=r"a\.jsonl:2: not JSON, Expecting ',' delimiter at column 1"):
        rows[1]
    with pytest.raises(Fault, match=r"a\.jsonl:3: a row must be an object with fields, not list"):
        rows[2]
    with pytest.raises(Fault, match=r"a\.jsonl:4: not UTF-8 \(byte 11 of the line\)"):
        rows[3]
    with pytest.raises(IndexError):
        rows[4]


def test_csv_rows(written):
    path = written("a.csv", '\ufeffmr,ref\n"x, ""y""","two\nlines"\nplain,last\n')
    rows = csv(path)
    assert rows == [{"mr": 'x, "y"', "ref": "two\nlines"}, {"mr": "plain", "ref": "last"}]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b\n1,2\n3\n", r":3: no value for the field 'b'"),
        (b"a,b\n1,2,3\n", r":2: more values than the header has names \(2\)"),
        (b"a,b\n", r" has a header but no rows"),
        (b'a,b\n1,"2\n', r":2: not CSV, unexpected end of data"),
        (b"a,b\n1,\xff\n", r": not UTF-8, invalid start byte in or after line"),
        (b"", r" is empty"),
    ],
)
def test_bad_csv(written, content, says):
    with pytest.raises(Fault, match=rf"a\.csv{says}"):
        csv(written("a.csv", content))


@pytest.mark.parametrize("read", [jsonl, csv])
def test_files_that_are_not_there(read, tmp_path, written):
    with pytest.raises(Fault, match=r"no file .*none\.jsonl"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(Fault, match="it is a directory"):
        read(tmp_path)
    with pytest.raises(Fault, match=r"nil\.jsonl is empty"):
        read(written("nil.jsonl", b""))


def test_a_file_of_blank_lines_is_empty_too(written):
    with pytest.raises(Fault, match="blank lines only"):
        jsonl(written("a.jsonl", "\n \n"))


def test_real_files(shared_data):
    questions, meanings = jsonl(shared_data / "gsm8k" / "train.jsonl"), csv(shared_data / "e2e_nlg" / "dev.csv")
    assert len(questions) == 7473 and set(questions[7472]) == {"question", "answer"}
    assert questions[7472].where.endswith("train.jsonl:7473")
    assert len(meanings) == 4672 and set(meanings[0]) == {"mr", "ref"}
