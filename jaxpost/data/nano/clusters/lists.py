# SPDX-License-Identifier: Apache-2.0
"""Lists of words or numbers: pick, count, leave out, reverse, sort, look up."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.world import BODY, COLOURS, DRINKS, FRUITS, KINDS, NUMBER_WORDS, THINGS, VEGETABLES, VEHICLES
from jaxpost.data.tasks import Row

task = partial(task, "lists")

WORDS = (
    *KINDS["animal"],
    *FRUITS,
    *VEGETABLES,
    *DRINKS,
    *COLOURS,
    *THINGS,
    *(w for w in VEHICLES if w != "boat"),
    *BODY,
)
WORDS = tuple(sorted(set(WORDS)))
POSITIONS = ("first", "second", "third", "fourth", "last")


def joined(items: list[str] | list[int]) -> str:
    return ", ".join(map(str, items))


def list_item(dice: Dice) -> Row:
    words = dice.draw(WORDS, dice.between(3, 5))
    place = dice.below(5)
    while POSITIONS[place] != "last" and place >= len(words):
        place = dice.below(5)
    answer = words[-1] if POSITIONS[place] == "last" else words[place]
    return {"list": joined(words), "position": POSITIONS[place], "answer": answer}


def list_count(dice: Dice) -> Row:
    count = dice.between(2, 7)
    return {"list": joined(dice.draw(WORDS, count)), "answer": NUMBER_WORDS[count]}


def list_without(dice: Dice) -> Row:
    words = dice.draw(WORDS, dice.between(3, 4))
    gone = dice.pick(words)
    return {"list": joined(words), "gone": gone, "answer": joined([word for word in words if word != gone])}


def list_reverse(dice: Dice) -> Row:
    words = dice.draw(WORDS, dice.between(2, 4))
    return {"list": joined(words), "answer": joined(words[::-1])}


def list_sort(dice: Dice) -> Row:
    words = dice.draw(WORDS, dice.between(2, 4))
    return {"list": joined(words), "answer": joined(sorted(words))}


def list_sort_numbers(dice: Dice) -> Row:
    numbers = dice.draw(range(100), dice.between(3, 4))
    return {"list": joined(numbers), "answer": joined(sorted(numbers))}


def list_has(dice: Dice) -> Row:
    words = dice.draw(WORDS, dice.between(3, 5))
    inside = dice.chance(0.5)
    word = dice.pick(words) if inside else dice.other(WORDS, *words)
    return {"list": joined(words), "word": word, "answer": "yes" if inside else "no", "options": ("yes", "no")}


TASKS = (
    task(
        list_item,
        "list position",
        (
            "What is the {position} word of this list: {list}?",
            "{list}\nThe {position} one is",
            "Write the {position} word.\n{list}",
            "List: {list}\nGive me its {position} word.",
            "From the words {list}, take the {position} one.",
            "Look at {list}. Which word is in {position} place?",
            "Name the {position} thing that is listed here: {list}",
            "I read the words {list}. Tell me the {position} of them.",
        ),
        turned=(
            ("Write a list of words in which {answer} is the {position} one.", "{list}"),
            ("Make a list. Its {position} word must be {answer}.", "{list}"),
        ),
    ),
    task(
        list_count,
        "list",
        (
            "How many words are in this list: {list}?",
            "{list}\nCount the words.",
            "Count how many things are named here. {list}",
            "List: {list}\nLength:",
            "Give the number of words in {list}.",
            "Look at the list and say how long it is.\n{list}",
            "Someone wrote {list}. How many words is that?",
            "Write as a word how many there are: {list}",
        ),
        turned=(
            ("Write a list of {answer} words.", "{list}"),
            ("Name {answer} things.", "{list}"),
        ),
    ),
    task(
        list_without,
        "list gone",
        (
            "Remove {gone} from the list {list}.",
            "List: {list}\nLeave out {gone} and write the rest.",
            "{list}\nCopy this list without {gone}.",
            "Write the words {list}, but not {gone}.",
            "What remains of {list} when {gone} is taken out?",
            "Delete the word {gone}.\n{list}",
            "Someone took {gone} away. Before we had {list}. What do we have now?",
            "All but {gone}: {list}",
        ),
        turned=(
            ("Put the word {gone} somewhere into the list {answer}.", "{list}"),
            ("{answer}\nAdd {gone} to it.", "{list}"),
        ),
    ),
    task(
        list_reverse,
        "list",
        (
            "Reverse the list {list}.",
            "{list}\nWrite these words from last to first.",
            "Turn the order of the words around: {list}",
            "List: {list}\nBackwards:",
            "Start with the last word and end with the first. {list}",
            "What is {list} in reverse order?",
            "Please write the words backwards, the last one first.\n{list}",
            "Read {list} from the end to the start.",
        ),
        turned=(
            ("Which list gives {answer} when it is reversed?", "{list}"),
            ("{answer} is the reverse of a list. Write that list.", "{list}"),
        ),
    ),
    task(
        list_sort,
        "list",
        (
            "Put these words in order from a to z: {list}",
            "{list}\nSort the words by letter.",
            "Write the list {list} in alphabetical order.",
            "Words: {list}\nSorted:",
            "How would a dictionary order the words {list}?",
            "Sort from a to z.\n{list}",
            "Bring {list} into the order of the alphabet.",
            "Please sort this list of words: {list}",
            "Look at the first letters and order the words.\n{list}",
        ),
        turned=(("Mix up the sorted list {answer}.", "{list}"),),
    ),
    task(
        list_sort_numbers,
        "list",
        (
            "Put these numbers in order: {list}",
            "{list}\nSort the numbers from small to large.",
            "Write {list} in order, the smallest number first.",
            "Numbers: {list}\nSorted:",
            "Order {list} so that each number is larger than the one before.",
            "Count up through these numbers in the right order.\n{list}",
            "Sort these from the lowest to the highest: {list}",
            "Start with the smallest and end with the largest. {list}",
            "How do the numbers {list} follow each other when they are sorted?",
        ),
        turned=(("Mix up the sorted numbers {answer}.", "{list}"),),
    ),
    task(
        list_has,
        "list word",
        (
            "Is the word {word} in the list {list}?",
            "List: {list}\nDoes it have the word {word}?\n{options_}",
            "{list}\nIs {word} one of them?",
            "Can you find {word} here? {list}",
            "Look for {word} among these words: {list}. Is it there?\n{options_}",
            "Say yes if {word} is in the list and no if it is not.\n{list}",
            "Here are some words: {list}. Answer yes or no: {word} is one of these words.",
            "My list is {list}. Did I write {word}?",
            "Check the list for {word}.\n{list}\n{options_}",
            "Does {word} belong to {list}?",
        ),
        metric="rank",
    ),
)
