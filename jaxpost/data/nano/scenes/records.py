# SPDX-License-Identifier: Apache-2.0
"""People and the weather, as key: value lines and as sentences."""

from typing import NamedTuple

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.world import COLOURS, DAYS, HIS, JOBS, NAMES, PLACES, PRONOUN, THINGS, a


class Person(NamedTuple):
    name: str
    age: int
    job: str
    pet: str

    def record(self) -> dict[str, object]:
        return self._asdict()


PETS = ("cat", "dog", "rabbit", "parrot", "mouse", "horse", "goat", "hen", "duck", "lizard", "snake", "turtle")
PERSON_LINES = (
    "{name} is a {age} year old {job} with a {pet}.",
    "{name} is {age} years old, works as {a_job} and has a {pet}.",
    "The {job} {name}, who is {age}, has a {pet}.",
    "{name} is {a_job}. {She} is {age} years old and has a {pet}.",
    "{name} is {age}. {She} is {a_job} and {her} pet is a {pet}.",
)


def person(dice: Dice) -> Person:
    return Person(dice.pick(NAMES), dice.between(20, 79), dice.pick(JOBS)[0], dice.pick(PETS))


def about_person(dice: Dice, who: Person) -> str:
    she = PRONOUN[who.name]
    return dice.say(PERSON_LINES, **who._asdict(), a_job=a(who.job), She=she.capitalize(), her=HIS[she])


class Weather(NamedTuple):
    day: str
    sky: str
    wind: str
    degrees: int


SKIES = ("sunny", "cloudy", "rainy", "foggy", "snowy", "clear", "grey", "stormy")
WINDS = ("weak", "strong", "light", "cold", "warm", "soft")
WEATHER_LINES = (
    "On {day} it is {sky} with a {wind} wind and {degrees} degrees.",
    "{day} is {sky}, the wind is {wind}, and it has {degrees} degrees.",
    "It will be {sky} on {day}, with {degrees} degrees and a {wind} wind.",
    "A {wind} wind blows on {day}. It is {sky} and has {degrees} degrees.",
)


def weather(dice: Dice) -> Weather:
    return Weather(dice.pick(DAYS), dice.pick(SKIES), dice.pick(WINDS), dice.between(0, 39))


def about_weather(dice: Dice, report: Weather) -> str:
    return dice.say(WEATHER_LINES, **report._asdict())


def lines(record: dict[str, object]) -> str:
    """A record as key: value lines."""
    return "\n".join([f"{key}: {value}" for key, value in record.items()])


DEEDS = (("find", "found"), ("buy", "bought"), ("lose", "lost"), ("see", "saw"), ("sell", "sold"), ("hide", "hid"))


def noted(dice: Dice) -> tuple[str, str]:
    """Four words of a note, and the sentence they stand for."""
    name, place, colour, thing = dice.pick(NAMES), dice.pick(PLACES), dice.pick(COLOURS), dice.pick(THINGS)
    verb, did = dice.pick(DEEDS)
    return f"{name}, {verb}, {colour} {thing}, {place}", f"{name} {did} a {colour} {thing} in the {place}."
