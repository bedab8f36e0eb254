# SPDX-License-Identifier: Apache-2.0
"""The letters of a word and its forms: spell, join, first and last letter, length, backwards, plural, past."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.language import PAST, PLURALS, SHORT_WORDS
from jaxpost.data.nano.world import NUMBER_WORDS
from jaxpost.data.tasks import Row

task = partial(task, "spelling")


def spell(dice: Dice) -> Row:
    word = dice.pick(SHORT_WORDS)
    return {"word": word, "answer": " ".join(word)}


def join_letters(dice: Dice) -> Row:
    word = dice.pick(SHORT_WORDS)
    return {"letters": " ".join(word), "answer": word}


def one_letter(dice: Dice) -> Row:
    word = dice.pick(SHORT_WORDS)
    position = dice.pick(("first", "last"))
    return {"word": word, "position": position, "answer": word[0] if position == "first" else word[-1]}


def word_length(dice: Dice) -> Row:
    length = dice.between(3, 5)
    word = dice.pick(SHORT_WORDS)
    while len(word) != length:
        word = dice.pick(SHORT_WORDS)
    return {"word": word, "answer": NUMBER_WORDS[length], "options": ("three", "four", "five")}


def backwards(dice: Dice) -> Row:
    word = dice.pick(SHORT_WORDS)
    return {"word": word, "answer": " ".join(word[::-1])}


def plural(dice: Dice) -> Row:
    word, answer = dice.pick(PLURALS)
    return {"word": word, "answer": answer}


def past(dice: Dice) -> Row:
    word, answer = dice.pick(PAST)
    return {"word": word, "answer": answer}


TASKS = (
    task(
        spell,
        "word",
        (
            "Spell the word {word}.",
            "{word}\nWrite its letters one by one.",
            "How do you spell {word}?",
            "Split {word} into letters.",
            "Word: {word}\nLetters:",
            "Write {word} with a blank between the letters.",
            "Which letters make the word {word}? Write them in order.",
            "A child asks how {word} is written. Tell the letters.",
        ),
        turned=(
            ("The letters are {answer}. What is the word?", "{word}"),
            ("Name a word that is spelled {answer}.", "{word}"),
        ),
        train=2_000,
    ),
    task(
        join_letters,
        "letters",
        (
            "Which word is spelled {letters}?",
            "{letters}\nJoin the letters to a word.",
            "Put these letters together: {letters}",
            "Letters: {letters}\nWord:",
            "Someone says the letters {letters}. What is the word?",
            "Write {letters} without blanks.",
            "Read {letters} as one word.",
            "Make a word of the letters {letters}, in this order.",
        ),
        turned=(
            ("Give the letters of {answer}, with blanks.", "{letters}"),
            ("Take the word {answer} apart.", "{letters}"),
        ),
        train=2_000,
    ),
    task(
        one_letter,
        "word position",
        (
            "What is the {position} letter of {word}?",
            "{word}\nThe {position} letter is",
            "Write the {position} letter of the word {word}.",
            "Word: {word}\nGive its {position} letter.",
            "Look at the word {word}. Which letter is in {position} place?",
            "Find the {position} letter in {word}.",
            "Take only the {position} letter from {word}.",
            "Which letter do you read {position} in {word}?",
        ),
        turned=(
            ("Write a word with {answer} as its {position} letter.", "{word}"),
            ("The {position} letter is {answer}. Name such a word.", "{word}"),
        ),
        train=2_000,
    ),
    task(
        word_length,
        "word",
        (
            "How many letters does {word} have?",
            "{word}\nCount the letters.",
            "Say how long the word {word} is.\n{options_}",
            "Number of letters in {word}:",
            "Is {word} a word of three, four or five letters?",
            "Count: {word} is written with how many letters?\n{options_}",
            "The length of {word}, as a word:",
            "I write {word} on paper. How many letters do I write?",
        ),
        turned=(
            ("Write a word of {answer} letters.", "{word}"),
            ("Give me a word that has {answer} letters.", "{word}"),
        ),
        metric="rank",
        train=2_000,
    ),
    task(
        backwards,
        "word",
        (
            "Spell {word} backwards.",
            "{word}\nWrite its letters from the end to the start.",
            "What are the letters of {word} in reverse?",
            "Give the letters of {word}, the last one first.",
            "Word: {word}\nLetters backwards:",
            "Turn {word} around, letter by letter.",
            "Start with the last letter of {word} and spell to the front.",
            "In a mirror the word {word} is read from its end. Which letters do you read?",
        ),
        turned=(
            ("Backwards a word has the letters {answer}. Write the word.", "{word}"),
            ("Which word is spelled {answer} from the end?", "{word}"),
        ),
        train=2_000,
    ),
    task(
        plural,
        "word",
        (
            "What is the plural of {word}?",
            "One {word}, two",
            "Write {word} in the plural.",
            "{word}\nMore than one of these:",
            "I have one {word} and you have many. What do you have?",
            "Singular: {word}\nPlural:",
            "Change the word {word} so that it means many.",
            "How do we say {word} when there are ten of them?",
        ),
        turned=(
            ("What is the singular of {answer}?", "{word}"),
            ("Many {answer}, but only one", "{word}"),
        ),
        train=1_000,
    ),
    task(
        past,
        "word",
        (
            "What is the past of {word}?",
            "Today I {word}. Yesterday I",
            "Write the verb {word} in the past.",
            "{word}\nThe same verb for yesterday:",
            "Now: {word}\nPast:",
            "They {word} today. How do you say it of last week?",
            "Change {word} to its past form.",
            "Which form of {word} do we use for things that are over?",
        ),
        turned=(
            ("{answer} is a past form. Of which verb?", "{word}"),
            ("Yesterday they {answer}. Today they", "{word}"),
        ),
        train=1_000,
    ),
)
