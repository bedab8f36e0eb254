# SPDX-License-Identifier: Apache-2.0
"""What follows from what: from possessions and places, from kinds of things, from numbers."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.errands import errands, tell
from jaxpost.data.nano.world import COLOURS, KINDS, NAMES, PLACES, PRONOUN, THINGS, a
from jaxpost.data.tasks import Row

task = partial(task, "entailment")

MAYBE = ("yes", "no", "maybe")
HAD = ("{name} had a {thing}.", "{name} was in the {place}.", "The {thing} was {colour}.")
OTHERWISE = ("{name} had no {thing}.", "{name} was not in the {place}.", "The {thing} was {other_colour}.")
UNKNOWN = (
    "{name} had a {other_thing} too.",
    "{name} was with {other_name}.",
    "The {thing} was a gift.",
    "{name} likes the {place}.",
    "The {thing} was cheap.",
    "{name} was alone.",
)
KINDS_ASKED = ("animal", "fruit", "vegetable", "drink", "colour", "job", "vehicle", "instrument", "plant")


def follows(dice: Dice) -> Row:
    errand = errands(dice, 1)[0]
    answer = dice.pick(MAYBE)
    patterns = {"yes": HAD, "no": OTHERWISE, "maybe": UNKNOWN}[answer]
    others = {
        "other_colour": dice.other(COLOURS, errand.colour),
        "other_thing": dice.other(THINGS, errand.thing),
        "other_name": dice.other(NAMES, errand.name),
    }
    claim = dice.say(patterns, **errand._asdict(), **others)
    return {"text": tell(dice, errand), "claim": claim, "answer": answer, "options": MAYBE}


def kind_follows(dice: Dice) -> Row:
    kind = dice.pick(KINDS_ASKED)
    word, name = dice.pick(KINDS[kind]), dice.pick(NAMES)
    right = dice.chance(0.5)
    asked = kind if right else dice.other(KINDS_ASKED, kind)
    text, claim = dice.pick(
        (
            (f"{name} wrote the word {word}.", f"{name} wrote the name of {a(asked)}."),
            (f"{name} thinks of the word {word}.", f"{name} thinks of {a(asked)}."),
            (f"The word in the book is {word}.", f"The book names {a(asked)}."),
            (f"{name} likes the word {word}.", f"{name} likes the name of {a(asked)}."),
        )
    )
    return {"text": text, "claim": claim, "answer": "true" if right else "false", "options": ("true", "false")}


def number_follows(dice: Dice) -> Row:
    count, limit = dice.draw(range(2, 50), 2)
    name, place, thing = dice.pick(NAMES), dice.pick(PLACES), dice.pick(("ball", "book", "cup", "hat", "doll", "key"))
    more = dice.chance(0.5)
    holds = count > limit if more else count < limit
    text, who = dice.pick(
        (
            (f"{name} has {count} {thing}s.", f"{name} has"),
            (f"There are {count} {thing}s in the {place}.", "There are"),
            (f"{name} saw {count} {thing}s in the {place}.", f"{PRONOUN[name].capitalize()} saw"),
        )
    )
    claim = f"{who} {'more' if more else 'less'} than {limit} {thing}s."
    return {"text": text, "claim": claim, "answer": "yes" if holds else "no", "options": ("yes", "no")}


TASKS = (
    task(
        follows,
        "text claim",
        (
            "{text}\nDoes it follow that this is so: {claim}\n{options_}",
            "We know: {text}\nIs it true that we then also know this? {claim} Answer yes, no or maybe.",
            "{text}\nClaim: {claim}\nYes, no or maybe?",
            "If the first line is true, is the second one true?\n{text}\n{claim}\n{options_}",
            "Read the text and check the claim.\nText: {text}\nClaim: {claim}\n{options_}",
            "{claim}\nCan we say this when we know only the following? {text}\n{options_}",
            "{text} From this, can we be sure of this: {claim} Say yes, no or maybe.",
            "A witness says: {text} Was it so? {claim}\n{options_}",
        ),
        turned=(
            ('{text}\nWrite a claim about this to which the answer is "{answer}".', "{claim}"),
            ('{text}\nThe answer was "{answer}". What could the claim be?', "{claim}"),
        ),
        metric="rank",
    ),
    task(
        kind_follows,
        "text claim",
        (
            "{text}\n{claim}\nIs the second line true or false if the first is true?",
            "Fact: {text}\nClaim: {claim}\nTrue or false?",
            "We know: {text} Is this right or wrong? {claim}\n{options_}",
            "{text} Therefore: {claim} Is this step true or false?",
            "Suppose that this is true. {text} Then what about this? {claim}\n{options_}",
            "Does the first sentence make the second one true?\nFirst: {text}\nSecond: {claim}\n{options_}",
            "{claim} Is that true when all we know is this? {text} Write true or false.",
            "Judge the claim by the fact.\n{claim}\n{text}\n{options_}",
        ),
        turned=(
            ("{text}\nWrite a claim that is {answer} if this is so.", "{claim}"),
            ("Give a fact that makes the claim {answer}. The claim: {claim}", "{text}"),
        ),
        metric="rank",
    ),
    task(
        number_follows,
        "text claim",
        (
            "{text}\nIs this so? {claim}",
            "{text} Does that mean the following? {claim}\n{options_}",
            "Fact: {text}\nClaim: {claim}\nYes or no:",
            "{claim} Can that be, when {text}",
            "Check the numbers. {text} So is the following right? {claim} Yes or no?",
            "Is the claim right?\nClaim: {claim}\nFact: {text}\n{options_}",
            "Someone counted: {text} A friend says: {claim} Is the friend right?",
            "Read both lines. Does the second agree with the first?\n{text}\n{claim}\n{options_}",
        ),
        turned=(
            ("{text}\nWrite a line with other numbers to which we say {answer}.", "{claim}"),
            ("The answer is {answer} and the claim is this: {claim} What do we know?", "{text}"),
        ),
        metric="rank",
    ),
)
