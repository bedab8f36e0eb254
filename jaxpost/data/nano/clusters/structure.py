# SPDX-License-Identifier: Apache-2.0
"""From key: value lines to sentences and back."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.records import about_person, about_weather, lines, noted, person, weather
from jaxpost.data.tasks import Row

task = partial(task, "structure")


def person_text(dice: Dice) -> Row:
    who = person(dice)
    return {"record": lines(who.record()), "name": who.name, "answer": about_person(dice, who)}


def person_field(dice: Dice) -> Row:
    """Look a value up in a record."""
    who = person(dice)
    record = who.record()
    key = dice.other(tuple(record), "name")
    return {"record": lines(record), "name": who.name, "key": key, "answer": str(record[key])}


def text_field(dice: Dice) -> Row:
    """Find a value in a sentence."""
    who = person(dice)
    key = dice.other(tuple(who.record()), "name")
    return {"text": about_person(dice, who), "name": who.name, "key": key, "answer": str(who.record()[key])}


def weather_text(dice: Dice) -> Row:
    report = weather(dice)
    return {"record": lines(report._asdict()), "day": report.day, "answer": about_weather(dice, report)}


def words_text(dice: Dice) -> Row:
    """A sentence from four words."""
    words, answer = noted(dice)
    return {"words": words, "answer": answer}


TASKS = (
    task(
        person_text,
        "record",
        (
            "{record}\nWrite this as a sentence.",
            "Write about this person.\n{record}",
            "Tell in words who {name} is.\n{record}",
            "Data:\n{record}\nText:",
            "Turn the lines into text.\n{record}",
            "Here is a card about {name}.\n{record}\nWhat does it say? Use a full sentence.",
            "Describe {name} with the help of these facts.\n{record}",
            "A newspaper needs a line about {name}. Use this:\n{record}",
        ),
        turned=(
            ("{answer}\nMake a card with lines for name, age, job and pet.", "{record}"),
            ("Fill in the card of {name} from this text: {answer}", "{record}"),
        ),
        metric="rouge",
    ),
    task(
        person_field,
        "record key",
        (
            "{record}\nWhat is the {key} of {name}?",
            "Look up the {key}.\n{record}",
            "{record}\nThe {key} of this person is",
            "Which value belongs to the key {key}?\n{record}",
            "Card:\n{record}\nCopy only the {key}.",
            "Read the card and answer. What does it say about the {key} of {name}?\n{record}",
            "I need the {key} of {name}. Can you find it?\n{record}",
            "Find the line that starts with {key} and write the rest of it.\n{record}",
        ),
        turned=(
            ("Make a card for {name} with the {key} {answer}.", "{record}"),
            ("Write lines with name, age, job and pet. The name is {name} and the {key} is {answer}.", "{record}"),
        ),
    ),
    task(
        text_field,
        "text key",
        (
            "{text}\nWhat is the {key} of {name}?",
            "{text}\n{key}:",
            "Take the {key} out of this text: {text}",
            "Which {key} does the text give for {name}? {text}",
            "Fill in the card.\nText: {text}\n{key}:",
            "Read this line about {name} and write down the {key}. {text}",
            "Find the {key}. {text}",
            "Someone told us: {text} We note the {key} of {name}. What do we write?",
        ),
        turned=(
            ("Write a line about {name}. The {key} must be {answer}.", "{text}"),
            ("{key}: {answer}\nname: {name}\nMake a text of this and add what is missing.", "{text}"),
        ),
    ),
    task(
        weather_text,
        "record",
        (
            "{record}\nWrite this weather as a sentence.",
            "Tell what the weather is like.\n{record}",
            "Weather data:\n{record}\nReport:",
            "You speak on the radio. Say this in words.\n{record}",
            "Make a full sentence about {day} from these lines.\n{record}",
            "How will it be on {day}? Use the table.\n{record}",
            "Turn the table into a weather report.\n{record}",
            "Describe the day.\n{record}",
        ),
        turned=(
            ("{answer}\nWrite the weather as lines for day, sky, wind and degrees.", "{record}"),
            ("Fill in the weather table from the report: {answer}", "{record}"),
        ),
        metric="rouge",
    ),
    task(
        words_text,
        "words",
        (
            "Write a sentence with the words {words}.",
            "{words}\nMake a sentence of these words.",
            "Words: {words}\nSentence:",
            "Use {words} in one sentence.",
            "What could have happened? Use these words: {words}",
            "Join the words to a full sentence about the past.\n{words}",
            "From the notes {words}, write what happened.",
            "Tell it as a sentence: {words}",
        ),
        turned=(
            ("{answer}\nWrite down only the main words.", "{words}"),
            ("Which words carry this sentence? {answer}", "{words}"),
        ),
        metric="rouge",
    ),
)
