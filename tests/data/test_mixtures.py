# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.mixtures import Mixture, Proportional, Temperature, Weights, quotas, split_tasks
from jaxpost.data.tasks import Task, Template
from jaxpost.faults import Fault

TEMPLATES = (
    Template("A {text}", "{answer}"),
    Template("B {text}", "{answer}"),
    Template("C {answer}", "{text}", turned=True),
)


def task(name, rows, cluster="c", templates=TEMPLATES):
    found = [{"text": f"{name} {i}", "answer": str(i)} for i in range(rows)]
    return Task(name, cluster, lambda split: found if split == "train" else found[:1], templates)


TASKS = (task("small", 10), task("middle", 100), task("large", 1000))


@given(st.lists(st.floats(0, 1e6), min_size=1).filter(any), st.integers(0, 10_000))
def test_quotas_sum_and_are_within_one_of_their_share(weights, total):
    found = quotas(weights, total)
    assert sum(found) == total
    assert all(abs(n - w / sum(weights) * total) < 1 + 1e-6 for n, w in zip(found, weights, strict=True))


@pytest.mark.parametrize(
    ("weighting", "size", "wanted"),
    [
        (Proportional(cap=50), None, [10, 50, 50]),
        (Proportional(), None, [10, 100, 1000]),
        (Proportional(cap=50), 22, [2, 10, 10]),
        (Temperature(1), 111, [1, 10, 100]),
        (Temperature(2), 1000, [71, 223, 706]),  # as 3.162, 10, 31.623
        (Temperature(1e9), 300, [100, 100, 100]),
        (Weights({"small": 1, "middle": 1, "large": 2}), 400, [100, 100, 200]),
        (Weights({"small": 1, "middle": 0, "large": 1}), None, [505, 0, 505]),
    ],
)
def test_each_task_has_its_share(weighting, size, wanted):
    mixture = Mixture(TASKS, weighting, size=size)
    assert list(mixture.quotas.values()) == wanted and len(mixture) == sum(wanted)
    assert Counter(example.task for example in mixture) == +Counter(dict(zip(mixture.quotas, wanted, strict=True)))


def test_the_default_is_flans():
    assert Mixture(TASKS).weighting == Proportional(cap=3000)
    for cap, weight in ((3000, 3000), (None, 5000)):
        assert Proportional(cap).weights({"large": 5000}) == {"large": weight}


def test_an_index_means_one_example_everywhere():
    one, other = Mixture(TASKS, seed=4), Mixture(TASKS, seed=4)
    assert one[77] == other[77] == one.at(0, 77) and one[-1] == one[len(one) - 1]
    assert [one[i] for i in range(30)] != [Mixture(TASKS, seed=5)[i] for i in range(30)]
    with pytest.raises(IndexError):
        one[len(one)]


def test_epochs_go_on_through_a_capped_tasks_rows():
    mixture = Mixture(TASKS, Proportional(cap=50))
    epochs = [{mixture.pick(e, i).row for i in range(len(mixture)) if mixture.pick(e, i).task == 1} for e in range(4)]
    assert all(len(rows) == 50 for rows in epochs)
    assert epochs[0] | epochs[1] == epochs[2] | epochs[3] == set(range(100))
    assert epochs[0] != epochs[2]


def test_all_templates_are_used_and_a_row_that_comes_again_is_worded_anew():
    mixture = Mixture((task("large", 3000),))
    used = Counter(mixture.pick(0, i).template for i in range(3000))
    assert used.keys() == {0, 1, 2} and min(used.values()) > 900
    words = [{(p := mixture.pick(e, i)).row: p.template for i in range(3000)} for e in range(3)]
    assert all({words[e][row] for e in range(3)} == {0, 1, 2} for row in range(3000))


def test_templates_can_be_chosen():
    assert {example.prompt[0] for example in Mixture(TASKS, templates="all")} == {"A", "B", "C"}
    assert {example.prompt[0] for example in Mixture(TASKS, templates="straight")} == {"A", "B"}
    assert {example.prompt[0] for example in Mixture(TASKS, templates=(2, 0))} == {"A", "C"}


def test_a_split_is_the_tasks():
    assert len(Mixture(TASKS, split="test")) == 3


def test_held_out_tasks_and_clusters():
    tasks = [task("a1", 1, "a"), task("a2", 1, "a"), task("b1", 1, "b"), task("c1", 1, "c"), task("c2", 1, "c")]
    train, unseen_tasks, unseen_clusters = split_tasks(tasks, ["a2", "b1"], ["b"])
    assert [t.name for t in train] == ["a1", "c1", "c2"]
    assert [t.name for t in unseen_tasks] == ["a2"] and [t.name for t in unseen_clusters] == ["b1"]
    assert split_tasks(tasks) == (tuple(tasks), (), ())
    with pytest.raises(Fault, match="no task 'a3' to hold out; did you mean a"):
        split_tasks(tasks, ["a3"])
    with pytest.raises(Fault, match="no cluster 'x' to hold out; known: a, b, c"):
        split_tasks(tasks, (), ["x"])
    with pytest.raises(Fault, match="all 5 tasks are held out"):
        split_tasks(tasks, (), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Mixture(()), "needs a task"),
        (lambda: Mixture((TASKS[0], TASKS[0])), "two tasks have one name: 'small'"),
        (lambda: len(Mixture((task("none", 0),))), "task none has no rows in its split 'train'"),
        (lambda: len(Mixture(TASKS, Weights({"smal": 1}))), "'smal', which is not in the mixture; did you mean small"),
        (lambda: len(Mixture(TASKS, Weights({"small": 1}))), "no weight is given for: middle, large"),
        (lambda: len(Mixture(TASKS, Weights({"small": 1, "middle": -1, "large": 1}))), "must not be negative"),
        (lambda: len(Mixture(TASKS, Weights({"small": 0, "middle": 0, "large": 0}))), "one must be above 0"),
        (lambda: len(Mixture(TASKS, Temperature(0))), "temperature must be above 0"),
        (lambda: len(Mixture(TASKS, Proportional(0))), "cap must be at least 1"),
        (lambda: len(Mixture(TASKS, size=0)), "size must be at least 1"),
        (lambda: Mixture(TASKS, templates=(3,))[0], r"task small has no templates \(3,\); it has 3"),
        (lambda: Mixture((task("t", 1, templates=TEMPLATES[2:]),), templates="straight")[0], "no templates 'straight'"),
        (lambda: Mixture((task("t", 1, templates=(Template("{txt}", "x"),)),))[0], r"\{txt\}.*did you mean text"),
    ],
)
def test_bad_mixtures(build, says):
    with pytest.raises(Fault, match=says):
        build()
