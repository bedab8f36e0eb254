# SPDX-License-Identifier: Apache-2.0
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.sources import TextLines, csv, jsonl, lines
from jaxpost.data.text import parts_of
from jaxpost.faults import Fault

ROWS = [{"text": "zero"}, {"text": "ünö 漢"}, {"text": "two\nlines"}]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "newline", "blank"])
def test_jsonl_rows_by_index(written, newline, last):
    body = newline.join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    rows = jsonl(written("a.jsonl", "\ufeff" + body + {"": "", "newline": newline, "blank": newline * 3}[last]))
    assert len(rows) == 3 and [dict(rows[i]) for i in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]]
    assert rows[-1] == ROWS[2] and list(rows) == ROWS
    again = pickle.loads(pickle.dumps(rows))
    assert list(again) == ROWS and again[1].where == rows[1].where


@given(
    st.lists(st.sampled_from([b"", b" ", b"\t\r", b"a", b" b", b"ccccccc", "ü".encode() * 3])),
    st.booleans(),
    st.integers(1, 9),
)
def test_lines_are_found_wherever_chunks_end(tmp_path_factory, parts, ended, chunk):
    """As Python's own lines, without the blank ones."""
    content = b"\n".join(parts) + (b"\n" if ended else b"")
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(content or b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK", chunk)
        starts, numbers = lines.found_lines(path, "a")
    split = content.split(b"\n")
    assert numbers.tolist() == [i for i, line in enumerate(split, 1) if line.strip()]
    begins = [sum(len(line) + 1 for line in split[: i - 1]) for i in numbers]
    assert starts.tolist()[: len(begins)] == begins


def test_a_row_knows_its_line_also_behind_blank_ones(written):
    path = written("a.jsonl", '{"text": "a"}\n\n  \n{"text": 5}\n')
    rows = jsonl(path)
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:4"] and rows.files == (path,)
    with pytest.raises(Fault, match=r"a\.jsonl:4: the field 'text' must be a string"):
        parts_of(rows[1])


def test_broken_lines_are_named_when_read(written):
    path = written("a.jsonl", b'{"text": "a"}\n{"text": "b"\n["text"]\n{"text": "\xff"}\n' + b"[" * 10**5 + b"\n{")
    rows = jsonl(path)
    assert rows[0] == {"text": "a"}
    for index, said in enumerate(
        [
            r"a\.jsonl:2: not JSON, Expecting ',' delimiter at column 1",
            r"a\.jsonl:3: a row must be an object with fields, not list",
            r"a\.jsonl:4: not UTF-8 \(byte 11 of the line\)",
            r"a\.jsonl:5: JSON that is nested too deeply",
            r"a\.jsonl:6: not JSON.*if the file is one JSON document, call it \.json",
        ],
        start=1,
    ):
        with pytest.raises(Fault, match=said):
            rows[index]
    with pytest.raises(IndexError):
        rows[6]


def test_a_line_of_ten_million_characters(written):
    """Is read; a broken one is told of in a short sentence."""
    text = "x" * 10**7
    rows = jsonl(written("a.jsonl", f'{{"text": "{text}"}}\n{{"text": "{text}}}\n{{"text": "after"}}'))
    assert rows[0] == {"text": text} and rows[2] == {"text": "after"}
    with pytest.raises(Fault, match=r"a\.jsonl:2: not JSON, Unterminated.*the line has 10\.0 million") as refused:
        rows[1]
    assert len(str(refused.value)) < 300


def test_other_encodings_are_refused(written):
    rows = jsonl(written("a.jsonl", f"{json.dumps(ROWS[0])}\n{json.dumps(ROWS[1])}".encode("utf-16")))
    for i in range(2):
        with pytest.raises(Fault, match=rf"a\.jsonl:{i + 1}: not UTF-8 .*: it is UTF-16"):
            rows[i]


def test_a_text_file_is_a_document_a_line(written):
    path = written("a.txt", "one \r\n\n two\n\t\nthree")
    rows = TextLines(path)
    assert list(rows) == [{"text": "one "}, {"text": " two"}, {"text": "three"}]
    assert rows[1].where == f"{path}:3"


@pytest.mark.parametrize("source", [jsonl, csv])
def test_files_that_are_not_there(source, tmp_path, written):
    written("some.jsonl", "{}")
    with pytest.raises(Fault, match=r"no file .*same\.jsonl; did you mean some\.jsonl"):
        source(tmp_path / "same.jsonl")
    with pytest.raises(Fault, match="no directory .* either"):
        source(tmp_path / "none" / "a.jsonl")
    with pytest.raises(Fault, match="it is a directory"):
        source(tmp_path)
    with pytest.raises(Fault, match=r"nil\.jsonl is empty"):
        source(written("nil.jsonl", b""))


def test_a_file_of_blank_lines_is_empty_too(written):
    with pytest.raises(Fault, match="blank lines only"):
        jsonl(written("a.jsonl", "\n \n"))
