# SPDX-License-Identifier: Apache-2.0
"""Sums, differences, small products, number rows and sums told as stories."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.changes import counting, number_row
from jaxpost.data.tasks import Row

task = partial(task, "arithmetic")


def add(dice: Dice) -> Row:
    total = dice.between(2, 99) if dice.chance(0.7) else dice.between(2, 20)
    a = dice.between(1, total - 1)
    return {"a": a, "b": total - a, "answer": str(total)}


def subtract(dice: Dice) -> Row:
    a = dice.between(2, 99) if dice.chance(0.7) else dice.between(2, 20)
    b = dice.between(1, a)
    return {"a": a, "b": b, "answer": str(a - b)}


def multiply(dice: Dice) -> Row:
    a, b = dice.between(0, 10), dice.between(0, 10)
    return {"a": a, "b": b, "answer": str(a * b)}


def next_number(dice: Dice) -> Row:
    row, answer = number_row(dice, 4)
    return {"row": row, "answer": str(answer)}


def story_sum(dice: Dice) -> Row:
    count = counting(dice)
    return {"text": count.text, "name": count.name, "things": count.things, "answer": str(count.answer)}


TASKS = (
    task(
        add,
        "a b",
        (
            "What is {a} plus {b}?",
            "{a} + {b} =",
            "Add {a} and {b}.",
            "Work out this sum: {a} + {b}",
            "Give the total of {a} and {b}.",
            "Numbers: {a}, {b}\nAdd them up. Answer:",
            "How much do {a} and {b} make together?",
            "Please compute {a} + {b} and write only the number.",
        ),
        turned=(
            ("Write two numbers whose sum is {answer}.", "{a} and {b}"),
            ("Make up a sum with the result {answer}.", "{a} + {b}"),
        ),
    ),
    task(
        subtract,
        "a b",
        (
            "What is {a} minus {b}?",
            "{a} - {b} =",
            "Take {b} away from {a}.",
            "Subtract {b} from {a}.",
            "What is left of {a} when {b} are taken away?",
            "Work out the difference of {a} and {b}.",
            "Start: {a}\nAway: {b}\nHow many are left?",
            "Compute {a} - {b}. Write only the number.",
        ),
        turned=(
            ("Write a subtraction with the result {answer}.", "{a} - {b}"),
            ("Which two numbers have the difference {answer}?", "{a} and {b}"),
        ),
    ),
    task(
        multiply,
        "a b",
        (
            "What is {a} times {b}?",
            "{a} x {b} =",
            "Multiply {a} by {b}.",
            "Give the product of {a} and {b}.",
            "There are {a} bags with {b} apples each. How many apples are there?",
            "Numbers: {a}, {b}\nMultiply them. Answer:",
            "Work out {a} x {b}.",
            "Tell me how much {a} times {b} makes.",
        ),
        turned=(
            ("Write a product of two numbers that makes {answer}.", "{a} x {b}"),
            ("Which two numbers give {answer} when you multiply them?", "{a} and {b}"),
        ),
        train=2_000,
    ),
    task(
        next_number,
        "row",
        (
            "Which number comes next: {row}?",
            "{row}, ...\nGo on with one more number.",
            "What is the next number in the row {row}?",
            "Continue the row.\n{row}",
            "The row {row} goes on. Write the number that follows.",
            "Row: {row}\nNext:",
            "Look at these numbers: {row}. What number is missing at the end?",
            "Find the rule of {row} and give the number after the last one.",
        ),
        turned=(
            ("Write a row of four numbers that goes on with {answer}.", "{row}"),
            ("{answer} is the next number. Which four numbers came before?", "{row}"),
        ),
    ),
    task(
        story_sum,
        "text",
        (
            "{text}\nHow many {things} does {name} have now?",
            "{text} How many {things} are there in the end?",
            "Solve the problem.\n{text}\nNumber of {things}:",
            "How many {things} does {name} have at the end of this story?\n{text}",
            "Read and count: {text}\nWhat number of {things} is left with {name}?",
            "Problem: {text}\nAnswer with a number.",
            "{text}\nCount the {things} of {name} now.",
            "Here is a small sum told as a story. {text}\nGive the result.",
            "Tell me the number of {things} that {name} has after this: {text}",
        ),
        turned=(("Write a short story at the end of which {name} has {answer} {things}.", "{text}"),),
    ),
)
