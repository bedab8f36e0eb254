# SPDX-License-Identifier: Apache-2.0
"""Plain text as it stands in papers: reviews with their verdict, cards and weather tables, short texts by topic."""

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.scenes.opinions import BLAME, JUDGED, PRAISE, review
from jaxpost.data.nano.scenes.records import about_person, about_weather, lines, noted, person, weather
from jaxpost.data.nano.scenes.subjects import QUESTIONS, TOPICS, question, topic_text
from jaxpost.data.nano.world import NAMES

VERDICT = (
    "This review is {sign}.",
    "That is a {sign} opinion.",
    "So the writer {liked} the {item}.",
    "{name} {liked} this {item}.",
    "It is a {sign} review of a {item}.",
    "{sign}",
    "{liked_it}, {name} {liked} it.",
    "Was it a good {item}? {liked_it}.",
    "The sentiment is {sign}.",
    "{name} had to judge this review and wrote {sign}.",
)
BETTER = (
    "The {good} was {fine}, but the {bad} was {poor}. So the {good} was better.",
    "The {bad} was {poor}, but the {good} was {fine}. I liked the {good} more.",
    "The {good} was {fine}, and not like the {bad}, which was {poor}.",
    "The {bad} was {poor}, but the {good} was {fine}. The {good} is the one to choose.",
)
TOPIC = (
    "{text} This is about {topic}.",
    "{text} The topic is {topic}.",
    "{topic}: {text}",
    "Topic: {topic}\n{text}",
    "{text} All that belongs to the topic {topic}.",
    "These lines are about {topic}. {text}",
    "{text} {name} had to name the topic and wrote {topic}.",
)
ASKS = (
    '"{question}" asks for a {kind}.',
    '{name} asks: "{question}" So {name} wants to know a {kind}.',
    "{question} That asks for a {kind}.",
    'The question "{question}" wants a {kind}.',
    '"{question}" is a question for a {kind}.',
)
JOINED = (
    "{record}\n\n{text}",
    "{text}\n\n{record}",
    "{record}\nThat is: {text}",
    "{text}\nIn a table this is:\n{record}",
    "{text} {reader} had to fill in a card and wrote:\n{record}",
    "{record}\n{reader} had to describe this in a sentence and wrote: {text}",
    "{record}\n{text}",
)
VALUE = (
    "{record}\nThe {key} of {name} is {value}.",
    "{text} So the {key} is {value}.",
    "{text} {key}: {value}.",
    "{record}\nOn the card of {name} the {key} is {value}.",
    "{text} The card says {key}: {value}.",
)
NOTES = ("Notes: {words}. {text}", "{text} Notes: {words}.", "{words}: {text}", "From the notes {words} we get: {text}")


def judged(dice: Dice) -> str:
    good = dice.chance(0.5)
    told = review(dice, good)
    verdict = dice.say(
        VERDICT, sign="positive" if good else "negative", item=told.item, name=dice.pick(NAMES),
        liked="liked" if good else "did not like", liked_it="Yes" if good else "No",
    )  # fmt: skip
    return f"{told.text} {verdict}"


def better(dice: Dice) -> str:
    good, bad = dice.draw(tuple(JUDGED), 2)
    return dice.say(BETTER, good=good, bad=bad, fine=dice.pick(PRAISE), poor=dice.pick(BLAME))


def topic(dice: Dice) -> str:
    about = dice.pick(tuple(TOPICS))
    return dice.say(TOPIC, text=topic_text(dice, about, dice.between(1, 4)), topic=about, name=dice.pick(NAMES))


def asks(dice: Dice) -> str:
    kind = dice.pick(tuple(QUESTIONS))
    return dice.say(ASKS, question=question(dice, kind), kind=kind, name=dice.pick(NAMES))


def card(dice: Dice) -> str:
    who = person(dice)
    record = who.record()
    fields = {"record": lines(record), "text": about_person(dice, who), "reader": dice.pick(NAMES)}
    if dice.chance(0.5):
        return dice.say(JOINED, **fields)
    key = dice.pick(("age", "job", "pet"))
    return dice.say(VALUE, **fields, key=key, name=who.name, value=record[key])


def forecast(dice: Dice) -> str:
    report = weather(dice)
    return dice.say(JOINED, record=lines(report._asdict()), text=about_weather(dice, report), reader=dice.pick(NAMES))


def notes(dice: Dice) -> str:
    words, text = noted(dice)
    return dice.say(NOTES, words=words, text=text)


PIECES = ((4, judged), (1, better), (3, topic), (2, asks), (3, card), (2, forecast), (2, notes))
