# SPDX-License-Identifier: Apache-2.0
"""Words and their relatives: opposites, words of the same meaning, odd ones out, young animals, pairs of pairs."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.language import OPPOSITES, SYNONYMS
from jaxpost.data.nano.world import ANIMALS, KINDS
from jaxpost.data.tasks import Row

task = partial(task, "relations")

YOUNG = tuple((animal.name, animal.young) for animal in ANIMALS if animal.young not in ("-", "chick", "calf", "foal"))
GROUPS = tuple(KINDS.values())


def both_ways(dice: Dice, pairs: tuple[tuple[str, ...], ...]) -> tuple[str, str]:
    one, two = dice.pick(pairs)
    return (one, two) if dice.chance(0.5) else (two, one)


def opposite(dice: Dice) -> Row:
    word, answer = both_ways(dice, OPPOSITES)
    return {"word": word, "answer": answer}


def similar(dice: Dice) -> Row:
    """Choose the word of the same meaning among four."""
    word, answer = both_ways(dice, SYNONYMS)
    others = [dice.pick(pair) for pair in dice.draw(SYNONYMS, 4)]
    options = [other for other in others if other not in (word, answer)][:3]
    return {"word": word, "answer": answer, "options": tuple(dice.shuffled([answer, *options]))}


def odd_one(dice: Dice) -> Row:
    many, one = dice.draw(GROUPS, 2)
    words = [*dice.draw(many, 3), dice.pick(one)]
    answer = words[-1]
    words = dice.shuffled(words)
    return {"list": ", ".join(words), "answer": answer, "options": tuple(words)}


def opposite_pair(dice: Dice) -> Row:
    """Are two words opposites?"""
    word, answer = both_ways(dice, OPPOSITES)
    right = dice.chance(0.5)
    if not right:
        answer = dice.other([other for pair in OPPOSITES for other in pair], word, answer)
    return {"a": word, "b": answer, "answer": "yes" if right else "no", "options": ("yes", "no")}


def analogy(dice: Dice) -> Row:
    """hot is to cold as big is to small; cat is to kitten as dog is to puppy."""
    pairs = dice.pick((OPPOSITES, YOUNG))
    (a, b), (c, answer) = dice.draw(pairs, 2)
    return {"a": a, "b": b, "c": c, "answer": answer}


TASKS = (
    task(
        opposite,
        "word answer",
        (
            "What is the opposite of {word}?",
            "{word}\nThe opposite is",
            "Write a word that means the opposite of {word}.",
            "Not {word} but",
            "Word: {word}\nOpposite:",
            "Which word is the other end of {word}?",
            "Turn {word} into its opposite.",
            "If it is not {word}, what can it be?",
        ),
        turned=(
            ("The opposite is {answer}. What was the word?", "{word}"),
            ("Name a word that is the reverse of {answer} in meaning.", "{word}"),
        ),
        train=1_000,
    ),
    task(
        similar,
        "word answer",
        (
            "Which word means the same as {word}?\n{options_}",
            "{word}\nChoose the word with the nearest meaning.\n{options_}",
            "{options_}\nOne of these words can stand for {word}. Which?",
            "Find a word like {word}.\n{options_}",
            "Another word for {word}:\n{options_}",
            "I do not want to use the word {word} again. What can I write?\n{options_}",
            "What is nearly the same as {word}?\n{options_}",
            "Which of the following goes best with the meaning of {word}?\n{options_}",
        ),
        turned=(
            ("What is another word for {answer}?", "{word}"),
            ("Write a word with the meaning of {answer}.", "{word}"),
        ),
        metric="rank",
        train=2_000,
    ),
    task(
        odd_one,
        "list",
        (
            "Which word does not belong: {list}?",
            "Find the odd one out.\n{options_}",
            "{list}\nThree of these belong together. Which one does not?",
            "Three words are of one kind and one is not. Name that one.\n{options_}",
            "Words: {list}\nOdd one:",
            "One thing in {list} is of a different kind. Which?",
            "Which of these is not like the others?\n{options_}",
            "Take the wrong word out of the group {list}.",
            "What should not be in this group? {list}\n{options_}",
        ),
        turned=(("Write four words of which {answer} is the odd one.", "{list}"),),
        metric="rank",
    ),
    task(
        opposite_pair,
        "a b",
        (
            "Are {a} and {b} opposites?",
            "Is {b} the opposite of {a}?\n{options_}",
            "Words: {a}, {b}\nOpposite of each other?",
            "Does {a} mean the opposite of {b}? Answer yes or no.",
            "A pupil says that the opposite of {a} is {b}. Is the pupil right?",
            "{a} and {b}: do they make a pair of opposites?\n{options_}",
            "Check the pair. First {a}, second {b}. Is one the reverse of the other?",
            "Say yes if {a} and {b} are opposites, and no if they are not.",
            "{a} - {b}\nA true pair of opposites?\n{options_}",
            "Can we say: not {a}, so {b}?",
        ),
        metric="rank",
        train=3_000,
    ),
    task(
        analogy,
        "a b c",
        (
            "{a} is to {b} as {c} is to",
            "{a} goes with {b}. What goes with {c} in the same way?",
            "{a} : {b} = {c} :",
            "The pair is {a} and {b}. Make such a pair with {c}. The second word is",
            "If {a} gives {b}, what does {c} give?",
            "Find the missing word: {a}, {b}; {c}, ...",
            "{a} and {b} belong together. Which word belongs to {c}?",
            "First pair: {a}, {b}\nSecond pair: {c},",
        ),
        turned=(
            ("{a} is to {b} as which word is to {answer}?", "{c}"),
            ("One pair is {c} and {answer}. Write another pair of the same sort.", "{a} and {b}"),
        ),
    ),
)
