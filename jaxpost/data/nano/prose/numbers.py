# SPDX-License-Identifier: Apache-2.0
"""Plain text about numbers: sums, rows, what is more and what is less, small stories that count."""

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.scenes.changes import counting, number_row
from jaxpost.data.nano.world import NAMES, THINGS

ADD = (
    "{a} plus {b} is {c}.",
    "{a} + {b} = {c}.",
    "{a} + {b} = {c}",
    "If you add {b} to {a}, you get {c}.",
    "{a} and {b} make {c}.",
    "{c} is the sum of {a} and {b}.",
    "{c} is {a} plus {b}.",
    "{a} and {b} are {c} together.",
    "The total of {a} and {b} is {c}.",
    "{name} says that {a} plus {b} is {c}.",
    "{c} = {a} + {b}",
    "{name} had to add {a} and {b} and wrote {c}.",
    "The result of {a} + {b} is {c}.",
    "{a} and {b} are two numbers with the sum {c}.",
)
SUBTRACT = (
    "{c} minus {b} is {a}.",
    "{c} - {b} = {a}.",
    "{c} - {b} = {a}",
    "If you take {b} from {c}, {a} are left.",
    "The difference of {c} and {b} is {a}.",
    "{a} is {c} minus {b}.",
    "{c} less {b} is {a}.",
    "{b} taken away from {c} leaves {a}.",
    "{name} says that {c} minus {b} is {a}.",
    "{a} = {c} - {b}",
    "{name} had to subtract {b} from {c} and wrote {a}.",
    "The result of {c} - {b} is {a}.",
    "When we subtract {b} from {c}, the result is {a}.",
)
MULTIPLY = (
    "{a} times {b} is {c}.",
    "{a} x {b} = {c}.",
    "{a} x {b} = {c}",
    "{name} had to multiply {a} and {b} and wrote {c}.",
    "{a} bags with {b} {things} each hold {c} {things}.",
    "The product of {a} and {b} is {c}.",
    "{c} is {a} times {b}.",
    "If you multiply {a} by {b}, you get {c}.",
    "{name} says that {a} times {b} is {c}.",
)
MORE = (
    "{b} is larger than {a}.",
    "{a} is less than {b}.",
    "{b} is more than {a}.",
    "{b} is the larger number of {a} and {b}.",
    "Of {b} and {a} the greater one is {b}.",
    "{a} is smaller than {b}.",
    "{a} or {b}: {b} is larger.",
    "{b} is not less than {a}.",
    "{a} is not more than {b}.",
    "{name} had to compare {b} and {a} and chose {b}.",
)
NEXT = (
    "The numbers {row} go on with {n}.",
    "After {row} comes {n}.",
    "{row}, {n}",
    "{row} and then {n}.",
    "{name} counts: {row}, {n}.",
    "The next number after {row} is {n}.",
    "{row}: the row continues with {n}.",
    "{name} had to continue the numbers {row} and wrote {n}.",
    "{row}, ... The missing number is {n}.",
)
LEFT = (
    "Now {name} has {n} {things}.",
    "So {name} has {n} {things} now.",
    "That makes {n} {things}.",
    "In the end there are {n} {things}.",
    "So the number of {things} is {n}.",
    "{n} {things} are left with {name}.",
)
OLDER = (
    "So {old} is older.",
    "{old} is older than {young}.",
    "{young} is younger than {old}.",
    "{name} had to compare the ages and named {old}.",
    "Of {old} and {young} it is {old} who has more years.",
    "{old} was born first.",
    "{old} has lived longer than {young}.",
)
MOST = (
    "So {name} has the most {things}.",
    "{name} has more {things} than the others.",
    "The most {things} belong to {name}.",
    "The winner is {name} with {n} {things}.",
    "The largest number is {n}, so {name} has most.",
)
CLAIMS = (
    ("That is more than {low}.", "That is not less than {low}.", "{name} has more than {low} {things}."),
    ("That is less than {high}.", "That is not more than {high}.", "{name} has less than {high} {things}."),
)


def name_of_many(dice: Dice) -> str:
    return dice.other(THINGS, "box") + "s"


def operation(dice: Dice) -> str:
    kind = dice.below(5)
    if kind == 4:
        a, b = dice.between(0, 10), dice.between(0, 10)
        return dice.say(MULTIPLY, a=a, b=b, c=a * b, name=dice.pick(NAMES), things=name_of_many(dice))
    c = dice.between(2, 99) if dice.chance(0.7) else dice.between(2, 20)
    a = dice.between(0, c)
    return dice.say(ADD if kind < 2 else SUBTRACT, a=a, b=c - a, c=c, name=dice.pick(NAMES))


def row(dice: Dice) -> str:
    shown, following = number_row(dice, dice.between(3, 6))
    return dice.say(NEXT, row=shown, n=following, name=dice.pick(NAMES))


def more_or_less(dice: Dice) -> str:
    a, b = sorted(dice.draw(range(100), 2))
    return dice.say(MORE, a=a, b=b, name=dice.pick(NAMES))


def counted(dice: Dice) -> str:
    told = counting(dice, dice.between(1, 2))
    return f"{told.text} {dice.say(LEFT, name=told.name, things=told.things, n=told.answer)}"


def ages(dice: Dice) -> str:
    (a, b), (m, n) = dice.draw(NAMES, 2), dice.draw(range(2, 99), 2)
    old, young = (a, b) if m > n else (b, a)
    text = dice.say(
        ("{a} is {m} and {b} is {n}.", "{a} is {m} years old. {b} is {n} years old.", "{a} is {m}, {b} is {n}."),
        a=a, b=b, m=m, n=n,
    )  # fmt: skip
    return f"{text} {dice.say(OLDER, old=old, young=young, name=dice.pick(NAMES))}"


def most(dice: Dice) -> str:
    names, counts = dice.draw(NAMES, 3), dice.draw(range(2, 31), 3)
    things = name_of_many(dice)
    text = " ".join([f"{name} has {count} {things}." for name, count in zip(names, counts, strict=True)])
    best = max(counts)
    return f"{text} {dice.say(MOST, name=names[counts.index(best)], things=things, n=best)}"


def claim(dice: Dice) -> str:
    low, count, high = sorted(dice.draw(range(2, 60), 3))
    name, things = dice.pick(NAMES), name_of_many(dice)
    told = dice.say(dice.pick(CLAIMS), name=name, things=things, low=low, high=high)
    return f"{name} has {count} {things}. {told}"


PIECES = ((8, operation), (2, row), (2, more_or_less), (2, counted), (1, ages), (1, most), (1, claim))
