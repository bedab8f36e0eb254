# SPDX-License-Identifier: Apache-2.0
"""Which of two is larger, bigger, earlier, older; who has the most."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.world import DAYS, MONTHS, NAMES, SIZES, THINGS
from jaxpost.data.tasks import Row

task = partial(task, "comparison")

SIZED = tuple(SIZES)


def larger_number(dice: Dice) -> Row:
    a, b = dice.draw(range(100), 2)
    return {"a": a, "b": b, "answer": str(max(a, b)), "options": (str(a), str(b))}


def bigger_thing(dice: Dice) -> Row:
    a, b = dice.draw(SIZED, 2)
    while abs(SIZES[a] - SIZES[b]) < 2:
        a, b = dice.draw(SIZED, 2)
    return {"a": a, "b": b, "answer": a if SIZES[a] > SIZES[b] else b, "options": (a, b)}


def smaller_thing(dice: Dice) -> Row:
    row = bigger_thing(dice)
    return {**row, "answer": row["b"] if row["answer"] == row["a"] else row["a"]}


def comes_first(dice: Dice) -> Row:
    calendar = dice.pick((DAYS, MONTHS))
    a, b = dice.draw(calendar, 2)
    unit = "week" if calendar is DAYS else "year"
    return {"a": a, "b": b, "unit": unit, "answer": min(a, b, key=calendar.index), "options": (a, b)}


def older_person(dice: Dice) -> Row:
    a, b = dice.draw(NAMES, 2)
    first, second = dice.draw(range(2, 99), 2)
    text = dice.say(
        ("{a} is {m} and {b} is {n}.", "{a} is {m} years old. {b} is {n} years old."), a=a, b=b, m=first, n=second
    )
    return {"text": text, "a": a, "b": b, "answer": a if first > second else b, "options": (a, b)}


def has_most(dice: Dice) -> Row:
    names = dice.draw(NAMES, 3)
    counts = dice.draw(range(2, 31), 3)
    things = dice.pick(THINGS[:10]) + "s"
    parts = [f"{name} has {count} {things}." for name, count in zip(names, counts, strict=True)]
    answer = names[counts.index(max(counts))]
    return {"text": " ".join(parts), "things": things, "answer": answer, "options": tuple(names)}


TASKS = (
    task(
        larger_number,
        "a b",
        (
            "Which number is larger, {a} or {b}?",
            "{a} or {b}: write the larger one.",
            "Of the numbers {a} and {b}, which is greater?\n{options_}",
            "Compare {a} with {b} and name the larger number.",
            "Numbers: {a} and {b}\nLargest:",
            "Which is more, {a} or {b}?\n{options_}",
            "Choose the greater number.\n{options_}",
            "I have two numbers, {a} and {b}. Tell me the larger of the two.",
        ),
        turned=(
            ("Write two numbers of which {answer} is the larger.", "{a} and {b}"),
            ("{answer} is the larger one. What can the two numbers be?", "{a} and {b}"),
        ),
        metric="rank",
    ),
    task(
        bigger_thing,
        "a b",
        (
            "Which is bigger, the {a} or the {b}?",
            "{a} or {b}: write the bigger one.",
            "Choose the bigger of the two.\n{options_}",
            "What is larger in size?\n{options_}",
            "Compare the {a} and the {b}. Which one is bigger?",
            "Bigger one of {a} and {b}:",
            "Think of the {a} and the {b}. Which of them needs more space?",
            "The {a} and the {b} stand side by side. Name the large one.\n{options_}",
        ),
        turned=(
            ("Name two things of which the {answer} is the bigger one.", "{a} and {b}"),
            ("The {answer} is bigger than the other one. Write both.", "{a} and {b}"),
        ),
        metric="rank",
    ),
    task(
        smaller_thing,
        "a b",
        (
            "Which is smaller, the {a} or the {b}?",
            "{a} or {b}: write the smaller one.",
            "Choose the smaller of the two.\n{options_}",
            "What is less big?\n{options_}",
            "Compare the {a} and the {b}. Which one is smaller?",
            "Smaller one of {a} and {b}:",
            "Which of these fits into the smaller bag, the {a} or the {b}?",
            "The {a} stands next to the {b}. Name the little one.\n{options_}",
        ),
        turned=(
            ("Name two things of which the {answer} is the smaller one.", "{a} and {b}"),
            ("The {answer} is smaller than the other one. Write both.", "{a} and {b}"),
        ),
        metric="rank",
    ),
    task(
        comes_first,
        "a b",
        (
            "Which comes first in the {unit}, {a} or {b}?",
            "{a} or {b}: which is earlier in the {unit}?",
            "Choose the one that comes earlier in a {unit}.\n{options_}",
            "In the {unit}, is it {a} or {b} that we meet first?",
            "Put {a} and {b} in order and write the first.",
            "A {unit} starts. What comes sooner?\n{options_}",
            "Earlier one of {a} and {b}:",
            "Of {a} and {b}, name the one that is before the other.",
            "A new {unit} has begun. Do we wait longer for {a} or for {b}? Write the one with the shorter wait.",
            "Compare {a} and {b}. One is before the other in the {unit}. Which?\n{options_}",
        ),
        metric="rank",
        train=1_000,
    ),
    task(
        older_person,
        "text",
        (
            "{text} Who is older?",
            "{text}\nWhich of the two is older?\n{options_}",
            "Who is the older one, {a} or {b}?\n{text}",
            "Read: {text}\nName the older person.",
            "Find out who was born first. {text}",
            "{text}\nThe older one is",
            "Compare the ages. {text}\n{options_}",
            "Of {a} and {b}, who has lived longer? {text}",
            "Ages: {text}\nWrite the name of the person with more years.",
        ),
        turned=(("Write the ages of {a} and {b} so that {answer} is older.", "{text}"),),
        metric="rank",
    ),
    task(
        has_most,
        "text",
        (
            "{text} Who has the most {things}?",
            "{text}\nWhich person has more {things} than the others?\n{options_}",
            "Who owns the largest number of {things}?\n{text}",
            "Read and compare. {text}\nThe name of the one with the most:",
            "Find the person with the most {things}: {text}",
            "{text}\nName the winner, the one with the most {things}.",
            "Three friends count their {things}. {text} Who has the most?\n{options_}",
            "Choose the friend with the greatest number.\n{text}\n{options_}",
            "{things}: {text}\nMost:",
        ),
        turned=(("Say how many {things} three friends have so that {answer} has the most.", "{text}"),),
        metric="rank",
    ),
)
