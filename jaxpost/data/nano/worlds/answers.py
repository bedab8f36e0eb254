# SPDX-License-Identifier: Apache-2.0
"""Answers: the built-in tasks as questions with a right answer and a wrong one that looks like it."""

from collections.abc import Sequence
from functools import partial
from typing import cast

from jaxpost.data.nano import CLUSTERS, TASKS
from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import TRIES, Source, side
from jaxpost.data.nano.worlds.drawn import MakeRow
from jaxpost.data.tasks import Example, Row, Split, Task
from jaxpost.faults import Fault, nearest


def tasks_of(only: Sequence[str] = ()) -> tuple[Task, ...]:
    """The tasks of these clusters, or of these names; all of them if none is named."""
    found = {name: (name,) for name in TASKS} | CLUSTERS
    for name in only:
        if name not in found:
            raise Fault(f"data.only: no task or cluster {name!r}; {nearest(name, found)}")
    return tuple(TASKS[task] for name in only or CLUSTERS for task in found[name])


def example(dice: Dice, split: Split, task: Task, options: bool = True) -> Example:
    """A question of the task, by a wording that asks for its answer (one that shows no options, if they are not
    wanted). Its split is the task's own: what `Tasks` keeps to test on is never trained on here."""
    wordings = [
        number
        for number, template in enumerate(task.templates)
        if not template.turned and (options or "options_" not in template.fields())
    ]
    return task.render(_row(dice, split, task), dice.pick(wordings))


def wrong(dice: Dice, split: Split, task: Task, right: Example) -> str:
    """A wrong answer of the same sort: another option, a number near it, two of its words changed round, or the answer
    to another question."""
    target = right.target
    if right.options is not None:
        return dice.other(right.options, target)
    if target.isdigit():
        off = dice.pick((1, 2, 10))
        return str(int(target) + (off if off > int(target) or dice.chance(0.5) else -off))
    words = target.split(" ")
    if len(words) > 2 and dice.chance(0.5) and (mixed := swapped(dice, words)).casefold() != target.casefold():
        return mixed
    while (other := str(_row(dice, split, task)["answer"])) == target:
        pass
    return other


def swapped(dice: Dice, words: Sequence[str]) -> str:
    """Two words change places; commas and the full stop stay where they are."""
    bare = [word.strip(",.") for word in words]
    one, other = dice.draw(range(len(words)), 2)
    bare[one], bare[other] = bare[other], bare[one]
    return " ".join(word.replace(word.strip(",."), new) for word, new in zip(words, bare, strict=True))


def _row(dice: Dice, split: Split, task: Task) -> Row:
    source = cast(Source, task.source)
    for _ in range(TRIES):
        row = source.make(dice)
        if side(task.name, row, source.inputs) == split:
            return row
    raise Fault(f"task {task.name}: {TRIES} rows were drawn and none belongs to the {split} split")


def asked(dice: Dice, split: Split, tasks: Sequence[Task]) -> tuple[Example, str]:
    """A question with its answer, and a wrong answer."""
    task = dice.pick(tasks)
    right = example(dice, split, task)
    return right, wrong(dice, split, task, right)


def sft(dice: Dice, split: Split, tasks: Sequence[Task]) -> Row:
    right, _ = asked(dice, split, tasks)
    return {"prompt": right.prompt, "completion": right.target, "task": right.task}


def prompts(dice: Dice, split: Split, tasks: Sequence[Task]) -> Row:
    """A question, with its answer for `exact` to compare with."""
    right, _ = asked(dice, split, tasks)
    return {"prompt": right.prompt, "answer": right.target, "task": right.task}


def preference(dice: Dice, split: Split, tasks: Sequence[Task]) -> Row:
    right, worse = asked(dice, split, tasks)
    return {"prompt": right.prompt, "chosen": right.target, "rejected": worse, "task": right.task}


def unpaired(dice: Dice, split: Split, tasks: Sequence[Task]) -> Row:
    right, worse = asked(dice, split, tasks)
    label = dice.chance(0.5)
    return {"prompt": right.prompt, "completion": right.target if label else worse, "label": label, "task": right.task}


KINDS = {"sft": sft, "prompts": prompts, "preference": preference, "unpaired": unpaired}


def makers(only: Sequence[str] = ()) -> dict[str, MakeRow]:
    """The functions that make rows of these tasks, by kind."""
    return {kind: partial(make, tasks=tasks_of(only)) for kind, make in KINDS.items()}
