# SPDX-License-Identifier: Apache-2.0
"""Questions about a short text: who, where, which colour, true or false, why."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.errands import Errand, errands, reason, tell
from jaxpost.data.nano.world import PRONOUN
from jaxpost.data.tasks import Row

task = partial(task, "reading")


def passage(dice: Dice) -> tuple[str, list[Errand]]:
    told = errands(dice, dice.between(2, 3))
    return " ".join(tell(dice, errand) for errand in told), told


def read_who(dice: Dice) -> Row:
    text, told = passage(dice)
    asked = dice.pick(told)
    return {"text": text, "colour": asked.colour, "thing": asked.thing, "answer": asked.name}


def read_where(dice: Dice) -> Row:
    text, told = passage(dice)
    asked = dice.pick(told)
    return {"text": text, "name": asked.name, "answer": asked.place}


def read_colour(dice: Dice) -> Row:
    text, told = passage(dice)
    asked = dice.pick(told)
    options = tuple(dice.shuffled([errand.colour for errand in told]))
    return {"text": text, "name": asked.name, "thing": asked.thing, "answer": asked.colour, "options": options}


def read_true(dice: Dice) -> Row:
    text, told = passage(dice)
    asked, wrong = dice.draw(told, 2)
    right = dice.chance(0.5)
    shown = asked if right else wrong
    claim = dice.pick(
        (
            f"{asked.name} was in the {shown.place}.",
            f"{asked.name} had the {shown.thing}.",
            f"The {asked.thing} was {shown.colour}.",
            f"The {shown.colour} {shown.thing} was in the {asked.place}.",
        )
    )
    return {"text": text, "claim": claim, "answer": "true" if right else "false", "options": ("true", "false")}


def read_why(dice: Dice) -> Row:
    told = reason(dice)
    other = reason(dice, dice.other(tuple(PRONOUN), told.name))
    text = " ".join(dice.shuffled([told.text, other.text]))
    return {"text": text, "name": told.name, "deed": told.deed, "answer": f"{told.she} was {told.feeling}"}


TASKS = (
    task(
        read_who,
        "text thing",
        (
            "{text}\nWho had the {thing}?",
            "Who had the {colour} {thing}? Read this and answer.\n{text}",
            "Text: {text}\nQuestion: Whose is the {thing}?\nAnswer:",
            "{text}\nName the person with the {colour} {thing}.",
            "Find the name of the owner of the {thing} in this story: {text}",
            "Read the story. {text} Which person had a {colour} {thing}?",
            "A {thing} is in this text. Who is the person that has it? {text}",
            "{text} I forgot who had the {thing}. Tell me.",
        ),
        turned=(
            ("Write a little story with a {colour} {thing} that belongs to {answer}.", "{text}"),
            ("{answer} has the {thing} in a story. Write that story.", "{text}"),
        ),
    ),
    task(
        read_where,
        "text name",
        (
            "{text}\nWhere was {name}?",
            "Where was {name}? The text says: {text}",
            "Text: {text}\nQuestion: In which place was {name}?\nAnswer:",
            "Name the place that {name} went to.\n{text}",
            "{text}\nWe look for {name}. Which place should we look in?",
            "Read and find the place of {name}: {text}",
            "{text} {name} was in the",
            "In which place does the story put {name}? {text}",
        ),
        turned=(
            ("Write a story in which {name} is in the {answer}.", "{text}"),
            ("{name} was in the {answer}. Tell more about that day.", "{text}"),
        ),
    ),
    task(
        read_colour,
        "text thing",
        (
            "{text}\nWhat colour is the {thing}?",
            "What is the colour of the {thing} in this text?\n{text}\n{options_}",
            "Text: {text}\nThe {thing} that {name} had was",
            "I want to paint the {thing} of {name}. Which colour do I need? {text}",
            "Read about {name} and choose the colour of the {thing}.\n{text}\n{options_}",
            "Which colour did the {thing} have? {text}",
            "{text}\nColour of the {thing}:",
            "{name} has a {thing} in this story. Name its colour.\n{text}",
        ),
        turned=(
            ("Write a story about {name} with a {answer} {thing}.", "{text}"),
            ("The {thing} is {answer}. Put it into a small story.", "{text}"),
        ),
        metric="rank",
    ),
    task(
        read_true,
        "text claim",
        (
            "{text}\nTrue or false: {claim}",
            "Is it true or false that the following happened? {claim}\n{text}",
            "Read the text. {text}\nNow judge this sentence: {claim}\n{options_}",
            "Text: {text}\nSentence: {claim}\nTrue or false:",
            "{claim} Does the story agree? Write true if it does and false if not.\n{text}",
            "{text}\nA child says: {claim} Is that true or false?\n{options_}",
            "Check this against the story. {claim}\nStory: {text}\n{options_}",
            "Story: {text} Is the following sentence about it true or false? {claim}",
        ),
        turned=(
            ("{text}\nWrite a sentence about this text that is {answer}.", "{claim}"),
            ("Story: {text}\nMake up a claim that a reader would call {answer}.", "{claim}"),
        ),
        metric="rank",
    ),
    task(
        read_why,
        "text name",
        (
            "{text}\nWhy did this happen: {name} {deed}?",
            "{name} {deed}. What was the reason?\n{text}",
            "Give the reason. {text} {name} {deed} because",
            "Text: {text}\nQuestion: What made {name} do it?\nAnswer:",
            "{text}\nTell me why {name} did that.",
            "We know that {name} {deed}. Explain it with the help of this text: {text}",
            "What was the matter with {name}? {text}",
            "Read the text and find the cause of what {name} did.\n{text}",
        ),
        turned=(
            ("{name} {deed}, because {answer}. Tell this in a short text about two people.", "{text}"),
            ("Cause: {answer}. Write a short text in which {name} does something because of it.", "{text}"),
        ),
    ),
)
