# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from jaxpost.data.rows.views import Renamed, Uniform
from jaxpost.data.sources import jsonl
from jaxpost.faults import Fault

ROWS = [{"text": "a"}, {"text": "b", "id": 1}, {"q": "c", "completion": "d"}, {"prompt": "e", "completion": "f"}]


def test_a_row_of_another_shape_is_named_with_the_first(written):
    path = written("a.jsonl", "\n".join(map(json.dumps, ROWS)))
    rows = Uniform(jsonl(path))
    assert rows[1]["text"] == "b" and rows.files == (path,) and rows.name == str(path)
    with pytest.raises(Fault, match=r"a\.jsonl:1 is 'text' \(text\), .*a\.jsonl:4 is 'completion' \(prompt, compl"):
        rows[3]
    with pytest.raises(Fault, match=r"a\.jsonl:1: no field 'q' to be used as 'prompt'"):
        Uniform(jsonl(path), {"q": "prompt"})[2]


def test_rows_under_our_names(written):
    rows = Renamed(jsonl(written("a.jsonl", json.dumps(ROWS[2]))), {"q": "prompt"})
    assert rows[0] == {"prompt": "c", "completion": "d"} and rows[0].where.endswith("a.jsonl:1") and len(rows) == 1
