# SPDX-License-Identifier: Apache-2.0
"""Rows made on demand: the same everywhere, train apart from test, labels in balance."""

import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.nano import TASKS
from jaxpost.data.nano.dice import Dice, fingerprint
from jaxpost.data.nano.generated import Generated, side
from jaxpost.faults import Fault

EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
CLOSED = [task for task in TASKS.values() if task.metric == "rank"]

# Fingerprints of the first 20 rows of both splits. They change only when a task is changed on purpose.
GOLDEN = {
    "add": 5203718874095956159,
    "list_sort": 16516187961739510868,
    "odd_one": 13602319346001150937,
    "read_true": 2306018723431412008,
    "review_sentiment": 15307321777734095946,
    "same_meaning": 16308525404690701143,
    "who_has": 720026471646191132,
    "person_text": 9660405496743127161,
}


def digest(name: str) -> int:
    task = TASKS[name]
    return fingerprint(repr([dict(row) for split in ("train", "test") for row in task.source(split)[:20]]))


def inputs_of(rows: Generated, count: int) -> set[str]:
    return {"|".join(sorted(str(row[field]) for field in rows.inputs)) for row in rows[:count]}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows(name):
    assert digest(name) == GOLDEN[name]


def test_another_process_makes_the_same_rows():
    program = (
        "from jaxpost.data.nano import TASKS, Documents\n"
        "print([t.source('test')[7] for t in TASKS.values()], Documents()[3])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    from jaxpost.data.nano import Documents

    assert printed == f"{[task.source('test')[7] for task in TASKS.values()]} {Documents()[3]}\n"


@EACH_TASK
def test_train_and_test_share_no_input(task):
    train, test = inputs_of(task.source("train"), 400), inputs_of(task.source("test"), 100)
    assert train and test
    assert not train & test


@EACH_TASK
def test_another_seed_stays_on_its_side(task):
    source = replace(task.source, seed=1)
    rows = source("test")[:50]
    assert rows != task.source("test")[:50]
    assert {side(task.name, row, task.source.inputs) for row in rows} == {"test"}


@pytest.mark.parametrize("task", CLOSED, ids=lambda task: task.name)
def test_labels_are_balanced(task):
    """Each label, or each place among options that differ from row to row, is right about equally often."""
    rows = task.source("train")[:600]
    fixed = len({frozenset(row["options"]) for row in rows}) == 1
    for size in {len(row["options"]) for row in rows}:
        sized = [row for row in rows if len(row["options"]) == size]
        counts = Counter(row["answer"] if fixed else row["options"].index(row["answer"]) for row in sized)
        expected = len(sized) / size
        assert len(counts) == size
        assert all(abs(count - expected) < 0.3 * expected for count in counts.values()), counts


@EACH_TASK
def test_random_access(task):
    rows = pickle.loads(pickle.dumps(task.source("train")))
    assert len(rows) == task.source.train
    assert rows[-1] == rows[len(rows) - 1]
    assert rows[5:8] == [rows[5], rows[6], rows[7]]
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_rows_without_a_side_are_a_fault():
    rows = Generated("stuck", lambda dice: {"x": 1}, ("x",), 0, side("stuck", {"x": 2}, ("x",)), 10)
    opposite = "test" if side("stuck", {"x": 1}, ("x",)) == "train" else "train"
    with pytest.raises(Fault, match="stuck.*more different inputs"):
        replace(rows, split=opposite)[0]


def test_an_unknown_split_is_a_fault():
    with pytest.raises(Fault, match="validation"):
        Generated("add", lambda dice: {}, ("a",), 0, "validation", 10)  # type: ignore[arg-type]


@given(st.integers(0, 2**64 - 1), st.integers(1, 30), st.data())
def test_dice_stay_in_range(seed, total, data):
    dice = Dice(seed)
    count = data.draw(st.integers(0, total))
    items = list(range(total))
    drawn = dice.draw(items, count)
    assert len(set(drawn)) == count and set(drawn) <= set(items)
    assert sorted(dice.shuffled(items)) == items
    assert 0 <= dice.below(total) < total
    assert -3 <= dice.between(-3, total) <= total


def test_draws_are_uniform():
    dice = Dice(0)
    counts = Counter(item for _ in range(6000) for item in dice.draw("abcdef", 2))
    assert all(abs(count - 2000) < 150 for count in counts.values())
    orders = Counter("".join(dice.shuffled("abc")) for _ in range(6000))
    assert len(orders) == 6 and all(abs(count - 1000) < 130 for count in orders.values())
