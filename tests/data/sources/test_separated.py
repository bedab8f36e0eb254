# SPDX-License-Identifier: Apache-2.0
import csv as csv_module
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.sources import CsvRows, csv
from jaxpost.faults import Fault


def test_rows_by_index(written):
    path = written("a.csv", '\ufeffmr,ref\r\n"x, ""y""","two\nlines\u2028still"\r\n\r\nplain,last\r\n')
    rows = csv(path)
    assert list(rows) == [{"mr": 'x, "y"', "ref": "two\nlines\u2028still"}, {"mr": "plain", "ref": "last"}]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:5"]
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)


@given(st.lists(st.tuples(*[st.text(st.sampled_from('a",\n\r \u2028ü'), max_size=6)] * 2), min_size=1, max_size=5))
def test_rows_are_those_of_the_standard_reader(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv_module.writer(file, quoting=csv_module.QUOTE_ALL).writerows([("p", "q"), *table])
    assert [tuple(row.values()) for row in csv(path)] == table


def test_tabs_and_long_values(written):
    rows = CsvRows(written("a.tsv", "p\tq\n1,5\t" + "x" * 200_000 + "\n"), delimiter="\t")
    assert rows[0] == {"p": "1,5", "q": "x" * 200_000}
    assert csv_module.field_size_limit() == 131072, "the process's limit is as it was"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b\n1,2\n3\n", r":3: no value for the field 'b'"),
        (b"a,b\n1,2,3\n", r":2: more values than the header has names \(2\)"),
        (b"a,b\n", r" has a header but no rows"),
        (b"a,a\n1,2\n", r":1: the header has the name 'a' twice"),
        (b'a,b\n1,"2\n', r":2: not CSV, unexpected end of data"),
        (b"a,b\n1,2\n1,\xff\n", r":3: not UTF-8 \(byte 3 of the line\)"),
        (b"", r" is empty"),
    ],
)
def test_bad_csv(written, content, says):
    with pytest.raises(Fault, match=rf"a\.csv{says}"):
        csv(written("a.csv", content))
