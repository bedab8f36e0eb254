# SPDX-License-Identifier: Apache-2.0
"""The before/after table: its means and margins by hand, and that it says where nothing improved."""

import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jaxpost.evals.table import GROUPS, Evaluation, Row, mean, points, render, statements
from jaxpost.faults import Fault

TRAINED, TASKS, CLUSTERS = GROUPS


def evaluation() -> Evaluation:
    return Evaluation(
        (
            Row(CLUSTERS, "entailment", "follows", "rank", 0.50, 0.51, 200),
            Row(TRAINED, "arithmetic", "sum", "exact", 0.10, 0.60, 100),
            Row(TRAINED, "arithmetic", "product", "exact", 0.30, 0.40, 300),
            Row(TRAINED, "sentiment", "mood", "rank", 0.50, 0.90, 100),
            Row(TASKS, "arithmetic", "difference", "exact", 0.80, 0.20, 100),
        ),
        ("ROUGE is left out of 1 task.",),
    )


def text_of(shown, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return console.file.getvalue()


def test_means_are_over_tasks_in_the_order_of_distance_from_training():
    means = {(m.group, m.cluster): m for m in evaluation().summary()}
    assert list(means) == [
        (TRAINED, None), (TRAINED, "arithmetic"), (TRAINED, "sentiment"),
        (TASKS, None), (TASKS, "arithmetic"), (CLUSTERS, None), (CLUSTERS, "entailment"),
    ]  # fmt: skip
    whole, arithmetic = means[TRAINED, None], means[TRAINED, "arithmetic"]
    assert (whole.before, whole.after) == (pytest.approx(0.3), pytest.approx(1.9 / 3))
    assert (whole.tasks, whole.count) == (3, 500)
    assert (arithmetic.gain, arithmetic.percent) == (pytest.approx(0.3), pytest.approx(150.0))
    assert [means[group, None].verdict for group in GROUPS] == ["better", "worse", "no clear change"]


def test_margin_by_hand():
    row = Row(TRAINED, "c", "t", "exact", 0.2, 0.5, 98)
    p, q = (0.2 * 98 + 1) / 100, (0.5 * 98 + 1) / 100
    assert row.margin == pytest.approx(1.96 * math.sqrt((p * (1 - p) + q * (1 - q)) / 100))
    assert mean([row] * 4, TRAINED, "c").margin == pytest.approx(row.margin / 2)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 10_000))
def test_margin_is_positive_and_shrinks_with_examples(before, after, count):
    few, many = (Row(TRAINED, "c", "t", "exact", before, after, n).margin for n in (count, 4 * count))
    assert 0 < many < few


def test_a_gain_from_nothing_has_no_percentage():
    m = mean([Row(TRAINED, "c", "t", "exact", 0.0, 0.5, 100)], TRAINED, "c")
    assert m.percent is None and m.verdict == "better"
    assert "–" in text_of(render(Evaluation((Row(TRAINED, "c", "t", "exact", 0.0, 0.5, 100),))))


def test_a_row_without_scores_is_shown_and_does_not_count():
    rows = (
        Row(TRAINED, "c", "known", "exact", 0.2, 0.4, 50),
        Row(TRAINED, "c", "unknown", "rouge", math.nan, math.nan, 0),
    )
    whole = Evaluation(rows).summary()[0]
    assert (whole.before, whole.tasks) == (0.2, 1)
    assert "unknown" in text_of(render(Evaluation(rows), tasks=True))
    alone = Evaluation(rows[1:])
    assert alone.summary()[0].verdict == "not measured"
    assert any(line.startswith("Not measured: trained tasks") for line in statements(alone))


@pytest.mark.parametrize("tasks", [False, True])
def test_the_terminal_table_fits_and_cuts_no_number(tasks):
    shown = text_of(render(evaluation(), tasks=tasks), width=100 if tasks else 80)
    assert "…" not in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("trained tasks"))
    margin = points(evaluation().summary()[0].margin)
    assert line.split()[4:] == ["500", "30.0", "63.3", "+33.3", margin, "+111"]
    assert ("product" in shown) is tasks


def test_what_did_not_improve_is_said_in_words():
    lines = statements(evaluation())
    assert "800 examples" in lines[0] and "exact match (3), rank of options (2)" in lines[0]
    assert f"Not clearly improved (gain within its margin): {CLUSTERS}: as a whole (+1.0), entailment (+1.0)." in lines
    assert f"Worse than before: {TASKS}: as a whole (−60.0), arithmetic (−60.0)." in lines
    assert lines[-1] == "ROUGE is left out of 1 task."
    assert not any(TRAINED in line for line in lines)


def test_an_empty_evaluation_says_so():
    assert statements(Evaluation(())) == ["Nothing was evaluated."]
    assert "Nothing was evaluated." in text_of(render(Evaluation(())))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    rows = (*evaluation().rows, Row(TASKS, "x", "nan", "rouge", math.nan, 0.5, 3))
    path = Evaluation(rows, ("said",)).save(tmp_path)
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["rows"][-1]["before"] is None
    assert content["summary"][0]["gain"] == pytest.approx(1.0 / 3)
    loaded = Evaluation.load(tmp_path)
    assert loaded.rows[:-1] == rows[:-1] and loaded.notes == ("said",)
    assert math.isnan(loaded.rows[-1].before) and loaded.rows[-1].after == 0.5


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [{"group": "x"}], "notes": []}', '{"rows": [3], "notes": []}'])
def test_a_file_that_is_no_table_is_a_fault(tmp_path, content):
    (tmp_path / "evals.json").write_text(content)
    with pytest.raises(Fault, match=r"evals\.json: not a before/after table"):
        Evaluation.load(tmp_path)


def test_points():
    assert [points(x) for x in (0.417, 1.0, math.nan)] == ["41.7", "100.0", "–"]
    assert [points(x, signed=True) for x in (0.03, -0.012, 0.0, -1e-9)] == ["+3.0", "−1.2", "0.0", "0.0"]
