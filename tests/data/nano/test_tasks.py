# SPDX-License-Identifier: Apache-2.0
"""The shape of the nano tasks: how many there are, how they are worded, how long their texts get."""

import re
from statistics import median

import pytest

from jaxpost.data.nano import CLUSTERS, TASKS

EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def test_there_are_enough_tasks_and_clusters():
    assert len(TASKS) >= 60
    assert len(CLUSTERS) == 13
    assert [name for names in CLUSTERS.values() for name in names] == list(TASKS)
    assert all(TASKS[name].cluster == cluster for cluster, names in CLUSTERS.items() for name in names)
    assert all(len(names) >= 3 for names in CLUSTERS.values())


@EACH_TASK
def test_ten_templates_that_differ(task):
    bare = [" ".join(re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", t.prompt.lower()))) for t in task.templates]
    shapes = [re.sub(r"{\w+}", "_", t.prompt) for t in task.templates]
    assert len(task.templates) == 10
    assert len(set(shapes)) == 10
    assert len(set(bare)) >= 9, "two wordings use the same words in the same order"
    assert sum(template.turned for template in task.templates) <= 3
    assert all(template.target == "{answer}" for template in task.templates if not template.turned)
    assert not any(template.prompt.endswith((" ", "\n")) for template in task.templates)


@EACH_TASK
def test_the_input_is_in_every_straight_prompt(task):
    """Without its options a prompt must still differ from row to row, and a turned one must name what it wants."""
    for template in task.templates:
        assert template.fields() - {"answer"}, template.prompt
        if template.turned:
            assert re.search(r"{\w+}", template.target)


@EACH_TASK
def test_every_template_renders_and_answers_stay_short(task):
    rows = task.source("train")[:100]
    lengths, answers = [], []
    for number, row in enumerate(rows):
        example = task.render(row, number)
        assert "{" not in example.prompt + example.target
        assert example.target == example.target.strip() != ""
        assert not re.search(r"(?<!\b\w )\ba [aeio][a-z]+", example.prompt), example.prompt
        lengths.append(len((example.prompt + example.target).split()))
        answers.append(len(str(row["answer"]).split()))
    assert median(lengths) <= 60
    assert max(lengths) <= 160
    assert max(answers) <= 20
    assert median(answers) <= 8 or task.metric == "rouge" or "meaning" in task.name


@EACH_TASK
def test_options_hold_the_answer_once(task):
    closed = task.metric == "rank"
    for row in task.source("test")[:100]:
        assert closed == ("options" in row)
        if closed:
            assert row["options"].count(row["answer"]) == 1
            assert len(set(row["options"])) == len(row["options"]) >= 2


@EACH_TASK
def test_a_closed_set_is_shown_or_implied(task):
    """Tasks judged by rank show the options in some wordings; other tasks never do."""
    shown = sum("{options_}" in template.prompt for template in task.templates)
    assert shown >= 2 if task.metric == "rank" else shown == 0
