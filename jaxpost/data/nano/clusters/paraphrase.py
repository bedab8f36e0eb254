# SPDX-License-Identifier: Apache-2.0
"""The same said in other words: judge it, choose it, write it."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.wordings import reworded
from jaxpost.data.tasks import Row

task = partial(task, "paraphrase")


def same_meaning(dice: Dice) -> Row:
    first, same, different = reworded(dice)
    agrees = dice.chance(0.5)
    second = same if agrees else different
    return {"first": first, "second": second, "answer": "yes" if agrees else "no", "options": ("yes", "no")}


def closest_meaning(dice: Dice) -> Row:
    first, same, different = reworded(dice)
    return {"text": first, "answer": same, "options": tuple(dice.shuffled((same, different)))}


def rewrite(dice: Dice) -> Row:
    first, same, _ = reworded(dice)
    return {"text": first, "answer": same}


TASKS = (
    task(
        same_meaning,
        "first second",
        (
            "{first}\n{second}\nDo these two sentences mean the same?",
            'Does "{first}" mean the same as "{second}"?',
            "Sentence one: {first}\nSentence two: {second}\nSame meaning?\n{options_}",
            "Is the second line another way to say the first?\n{first}\n{second}",
            "{first} In other words: {second} Is that right?\n{options_}",
            "Compare the meaning of the two and answer yes or no.\n{first}\n{second}",
            "Anyone who says {first} also says {second} Yes or no?",
            "Two friends tell what happened.\n- {first}\n- {second}\nDo they tell the same thing?",
        ),
        turned=(
            ("{first}\nWrite a sentence. Asked if it means the same, we say {answer}.", "{second}"),
            ("Same meaning: {answer}. One sentence is: {second} What is the other?", "{first}"),
        ),
        metric="rank",
    ),
    task(
        closest_meaning,
        "text answer",
        (
            "{text}\nWhich sentence means the same?\n{options_}",
            "Choose the sentence with the same meaning as this one: {text}\n{options_}",
            "{options_}\nOne of these says the same as the following: {text} Write it.",
            "Find another way to say it.\n{text}\n{options_}",
            "Here is a sentence. {text} Here are two more.\n{options_}\nCopy the one that agrees with it.",
            "How else can we say this? {text}\n{options_}",
            "What did the speaker of these words mean? {text}\n{options_}",
            "{text}\nThat is to say\n{options_}",
            "Only one of the options has the meaning of this: {text}\n{options_}",
            "Pick the line that tells the same as the first.\nFirst: {text}\n{options_}",
        ),
        metric="rank",
    ),
    task(
        rewrite,
        "text answer",
        (
            "Say this in other words: {text}",
            "{text}\nThe same in other words:",
            "Write another sentence with the same meaning. {text}",
            "Change the words but not the meaning.\n{text}",
            "How else could you say it? {text}",
            "Sentence: {text}\nParaphrase:",
            "Rewrite the following. {text}",
            "Tell a friend the same thing with different words. {text}",
        ),
        turned=(
            ("This is a paraphrase: {answer} What could be the sentence that it came from?", "{text}"),
            ("{answer}\nGive one more way to say this.", "{text}"),
        ),
        metric="rouge",
    ),
)
