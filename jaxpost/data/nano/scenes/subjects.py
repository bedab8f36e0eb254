# SPDX-License-Identifier: Apache-2.0
"""Short texts about a topic, and questions by what they ask for."""

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.scenes.records import SKIES, WINDS
from jaxpost.data.nano.world import (
    COLOURS,
    DAYS,
    DRINKS,
    FRUITS,
    INSTRUMENTS,
    KINDS,
    MEALS,
    MONTHS,
    NAMES,
    PLACES,
    PLANTS,
    THINGS,
    VEGETABLES,
    VEHICLES,
    a,
)

# Lines of a topic; two or three of them make a short text.
TOPICS = {
    "weather": (
        "It will rain on {day}.",
        "The sky is {sky} today.",
        "A {wind} wind blows from the north.",
        "It has {n} degrees.",
        "There is snow in the street.",
        "Take an umbrella with you.",
        "The sun is hot in {month}.",
        "The storm is over now.",
    ),
    "food": (
        "Cook the {vegetable} in a pot.",
        "Add some {meal} and salt.",
        "The {fruit} is sweet.",
        "We ate {meal} and {vegetable}.",
        "Bake it in the oven.",
        "The soup needs one more {vegetable}.",
        "{name} had {a_fruit} for breakfast.",
        "A cup of {drink} goes well with it.",
    ),
    "sport": (
        "{name} won the race.",
        "Our team scored {n} points.",
        "The match was in the big hall.",
        "{name} kicked the ball.",
        "They play again on {day}.",
        "{name} jumped higher than {friend}.",
        "The players trained all week.",
        "The goal came late.",
    ),
    "music": (
        "{name} plays the {instrument}.",
        "The concert starts at eight.",
        "They sang {n} songs.",
        "The {instrument} was loud.",
        "The band has a new singer.",
        "{name} wrote a slow song.",
        "We heard a {instrument} and a choir.",
        "Everyone danced to the tune.",
    ),
    "travel": (
        "The train leaves on {day}.",
        "{name} packed a bag for the trip.",
        "The ticket costs {n} coins.",
        "We took a {vehicle} to the sea.",
        "The hotel is near the station.",
        "{name} flew to a far land.",
        "The {vehicle} was late.",
        "They stayed away until {month}.",
    ),
    "school": (
        "The teacher reads a story to the class.",
        "{name} did the homework.",
        "The pupils learn to count to {n}.",
        "The lesson was about {animal} and {fruit}.",
        "{name} wrote a word on the board.",
        "The test is on {day}.",
        "{friend} sat in the first row.",
        "The class starts again in {month}.",
    ),
    "nature": (
        "The {animal} lives far from people.",
        "The {plant} grows near the river.",
        "We saw {n} tracks of {a_animal}.",
        "The leaves of the {plant} fall in {month}.",
        "The {animal} feeds its young.",
        "In the woods we saw the {plant}.",
        "The {animal} hides in the grass.",
        "Birds sing in the trees.",
    ),
}


def topic_text(dice: Dice, topic: str, length: int = 2) -> str:
    name, friend = dice.draw(NAMES, 2)
    animal, fruit = dice.pick(KINDS["animal"]), dice.pick(FRUITS)
    fields = {
        "name": name,
        "friend": friend,
        "n": dice.between(2, 30),
        "day": dice.pick(DAYS),
        "month": dice.pick(MONTHS),
        "sky": dice.pick(SKIES),
        "wind": dice.pick(WINDS),
        "vegetable": dice.pick(VEGETABLES),
        "fruit": fruit,
        "meal": dice.pick(MEALS),
        "drink": dice.pick(DRINKS),
        "instrument": dice.pick(INSTRUMENTS),
        "vehicle": dice.pick(VEHICLES),
        "plant": dice.pick(PLANTS),
        "animal": animal,
        "a_animal": a(animal),
        "a_fruit": a(fruit),
    }
    return " ".join(line.format_map(fields) for line in dice.draw(TOPICS[topic], length))


# Questions by what they ask for.
QUESTIONS = {
    "person": (
        "Who has the {thing}?",
        "Who went to the {place} with {name}?",
        "Whose {thing} is it?",
        "Who is in the {place}?",
        "Which friend gave {name} the {thing}?",
        "Who lost a {colour} {thing}?",
    ),
    "place": (
        "Where is the {thing}?",
        "Where did {name} go?",
        "In which town does {name} live?",
        "Where can I buy a {thing}?",
        "Where did {name} lose the {colour} {thing}?",
        "From which land is {name}?",
    ),
    "time": (
        "When does the {place} open?",
        "When did {name} find the {thing}?",
        "On which day does {name} come?",
        "In which month was {name} born?",
        "When was the {thing} made?",
        "At what hour does {name} leave the {place}?",
    ),
    "number": (
        "How many {thing}s does {name} have?",
        "How old is {name}?",
        "How much is the {thing}?",
        "How many people are in the {place}?",
        "How far is it to the {place}?",
        "How often did {name} see the {thing}?",
    ),
    "reason": (
        "Why is {name} in the {place}?",
        "Why did {name} buy a {colour} {thing}?",
        "Why is the {place} closed?",
        "For what reason did {name} leave?",
        "Why is the {thing} {colour}?",
        "Why did {name} not come?",
    ),
}


def question(dice: Dice, kind: str) -> str:
    thing = dice.other(THINGS, "box")
    return dice.say(
        QUESTIONS[kind], name=dice.pick(NAMES), thing=thing, place=dice.pick(PLACES), colour=dice.pick(COLOURS)
    )
