# SPDX-License-Identifier: Apache-2.0
"""Who went where and got what, and why people do what they do: text together with what is true in it."""

from typing import NamedTuple

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.world import COLOURS, NAMES, PLACES, PRONOUN, THINGS


class Errand(NamedTuple):
    """Who went where and got what: one line of a scene without changes."""

    name: str
    place: str
    colour: str
    thing: str


def errands(dice: Dice, count: int) -> list[Errand]:
    """Errands in which all names, places, colours and things differ, so that each answers its own question."""
    columns = (dice.draw(items, count) for items in (NAMES, PLACES, COLOURS, THINGS))
    return [Errand(*line) for line in zip(*columns, strict=True)]


TOLD = (
    "{name} went to the {place} and found a {colour} {thing}.",
    "{name} went to the {place} and bought a {colour} {thing}.",
    "{name} was in the {place} with a {colour} {thing}.",
    "In the {place} {name} found a {colour} {thing}.",
    "{name} walked to the {place} with a {colour} {thing}.",
    "{name} ran to the {place}. There {she} got a {colour} {thing}.",
    "{name} took a {colour} {thing} to the {place}.",
    "{name} came to the {place}. {She} had a {colour} {thing}.",
)


def tell(dice: Dice, errand: Errand) -> str:
    she = PRONOUN[errand.name]
    return dice.say(TOLD, **errand._asdict(), she=she, She=she.capitalize())


# Why people do what they do: (feeling, what they do then).
REASONS = (
    ("hungry", "ate some bread"),
    ("hungry", "made a big soup"),
    ("hungry", "bought a pizza"),
    ("thirsty", "drank some water"),
    ("thirsty", "asked for a cup of tea"),
    ("tired", "went to bed"),
    ("tired", "sat down on a chair"),
    ("cold", "put on a coat"),
    ("cold", "closed the window"),
    ("hot", "opened the window"),
    ("hot", "jumped into the lake"),
    ("wet", "took a dry towel"),
    ("late", "ran to the bus"),
    ("late", "took a taxi"),
    ("sick", "called the doctor"),
    ("sick", "stayed in bed"),
    ("bored", "read a new book"),
    ("bored", "played a game"),
    ("scared", "hid under the bed"),
    ("scared", "called for help"),
    ("happy", "danced and sang"),
    ("happy", "smiled at all people"),
    ("sad", "cried for an hour"),
    ("sad", "wanted to be alone"),
    ("angry", "shouted at the dog"),
    ("angry", "kicked the door"),
    ("dirty", "washed with soap"),
    ("rich", "bought a castle"),
    ("lost", "looked at the map"),
    ("proud", "showed the prize to all friends"),
)


class Reason(NamedTuple):
    text: str
    name: str
    she: str
    feeling: str
    deed: str


BECAUSE = (
    "{name} was {feeling}, so {she} {deed}.",
    "{name} {deed} because {she} was {feeling}.",
    "{name} was very {feeling}. So {she} {deed}.",
    "Because {name} was {feeling}, {she} {deed}.",
    "{name} {deed}, because {she} was so {feeling}.",
)


def reason(dice: Dice, name: str | None = None) -> Reason:
    name = name or dice.pick(NAMES)
    she = PRONOUN[name]
    feeling, deed = dice.pick(REASONS)
    text = dice.say(BECAUSE, name=name, she=she, feeling=feeling, deed=deed)
    return Reason(text, name, she, feeling, deed)
