# SPDX-License-Identifier: Apache-2.0
"""Keeping track: who has it in the end, where somebody ends up, whom a pronoun means, what came first."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.changes import handover, journey, pronoun
from jaxpost.data.tasks import Row

task = partial(task, "tracking")


def who_has(dice: Dice) -> Row:
    told = handover(dice, dice.between(1, 2))
    return {"text": told.text, "thing": told.subject, "answer": told.answer}


def where_is(dice: Dice) -> Row:
    told = journey(dice, dice.between(2, 4))
    return {"text": told.text, "name": told.subject, "answer": told.answer}


def went_first(dice: Dice) -> Row:
    told = journey(dice, 4)
    return {"text": told.text, "name": told.subject, "answer": told.before}


def who_is_meant(dice: Dice) -> Row:
    text, word, meant, names = pronoun(dice)
    return {"text": text, "pronoun": word, "answer": meant, "options": names}


TASKS = (
    task(
        who_has,
        "text",
        (
            "{text}\nWho has the {thing} now?",
            "In the end, who has the {thing}? {text}",
            "Follow the {thing}. {text} Whose hands is it in at the end?",
            "{text}\nThe {thing} is now with",
            "The {thing} goes from one person to the next.\n{text}\nName the last one.",
            "Read slowly and tell where the {thing} ends up, with which person. {text}",
            "Who must we ask if we want the {thing}?\n{text}",
            "Story: {text}\nOwner of the {thing} at the end:",
        ),
        turned=(
            ("Write a story at the end of which {answer} has the {thing}.", "{text}"),
            ("Tell how the {thing} came to {answer}.", "{text}"),
        ),
    ),
    task(
        where_is,
        "text",
        (
            "{text}\nWhere is {name} now?",
            "Where do we find {name} at the end? {text}",
            "Follow {name} from place to place. {text} What is the last place?",
            "{text}\n{name} is now in the",
            "People move about.\n{text}\nIn which place is {name} in the end?",
            "A letter for {name} came. To which place must we bring it, after all this? {text}",
            "Story: {text}\nPlace of {name} now:",
            "Name the place that {name} is in when the story is over.\n{text}",
        ),
        turned=(
            ("Write a story at the end of which {name} is in the {answer}.", "{text}"),
            ("Tell how {name} came to the {answer}.", "{text}"),
        ),
    ),
    task(
        went_first,
        "text",
        (
            "{text}\nWhere did {name} go first?",
            "Which place did {name} visit before all other places? {text}",
            "{text} The first place of {name} was the",
            "The trip of {name} began in one of these places. In which?\n{text}",
            "Story: {text}\nFirst stop of {name}:",
            "Read this and name the place where {name} started.\n{text}",
            "{text}\nThink back: where was {name} at the beginning?",
            "{name} saw several places, or only one. Write the first. {text}",
        ),
        turned=(
            ("Write a story in which {name} goes to the {answer} first.", "{text}"),
            ("Tell of a trip of {name} that starts in the {answer}.", "{text}"),
        ),
    ),
    task(
        who_is_meant,
        "text",
        (
            '{text}\nWho is "{pronoun}"?',
            '{text} The word "{pronoun}" stands for',
            'Whom does "{pronoun}" mean here? {text}\n{options_}',
            'Put a name in the place of "{pronoun}". Which name is it?\n{text}',
            "{text}\nWhich of the two people is meant by {pronoun}?\n{options_}",
            "Read: {text} Name the person called {pronoun}.",
            'In the following text, who does "{pronoun}" point to? {text}',
            'Text: {text}\n"{pronoun}" =',
        ),
        turned=(
            ('Write about two people so that "{pronoun}" means {answer}.', "{text}"),
            ("Use the word {pronoun} for {answer} in a short text about two people.", "{text}"),
        ),
        metric="rank",
    ),
)
