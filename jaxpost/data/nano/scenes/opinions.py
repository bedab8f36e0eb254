# SPDX-License-Identifier: Apache-2.0
"""Reviews of things, and what happens to people and how they feel then."""

from typing import NamedTuple

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.world import HIS, NAMES, PRONOUN, THINGS, a

# What is judged in a review: the thing and its parts.
JUDGED = {
    "film": ("story", "music", "hero", "ending"),
    "book": ("story", "hero", "first page", "ending"),
    "hotel": ("room", "bed", "garden", "breakfast"),
    "cafe": ("coffee", "soup", "cake", "waiter"),
    "game": ("idea", "music", "first level", "story"),
    "song": ("singer", "text", "drum", "ending"),
    "museum": ("building", "big hall", "guide", "shop"),
    "bike": ("seat", "colour", "bell", "lamp"),
    "trip": ("guide", "bus", "food", "weather"),
    "toy": ("box", "colour", "idea", "price"),
}
PRAISE = (
    "wonderful great lovely excellent perfect superb amazing charming brilliant fantastic pleasant delightful"
).split()
BLAME = ("terrible awful horrible boring dreadful ugly dull annoying useless disappointing nasty unpleasant").split()
LIKED = (
    "I loved this {item}.",
    "I want to have it again.",
    "We all liked it.",
    "It made me smile.",
    "I will tell all my friends to try it.",
    "It is worth the money.",
    "What a good {item}!",
    "I enjoyed it very much.",
)
HATED = (
    "I hated this {item}.",
    "I never want to have it again.",
    "We did not like it at all.",
    "It made me angry.",
    "I will tell all my friends to stay away.",
    "It is not worth the money.",
    "What a bad {item}!",
    "I wanted my money back.",
)
OPENINGS = (
    "The {item} was {word}.",
    "This {item} is {word}.",
    "It was {a_word} {item}.",
    "I think the {item} is {word}.",
    "What {a_word} {item}!",
    "The {item} was really {word}.",
    "The {item} was not {unlike}, it was {word}.",
)
DETAILS = (
    "The {part} was {word}.",
    "The {part} is {word} too.",
    "I found the {part} {word}.",
    "And the {part} was so {word}!",
    "The {part} was not {unlike} at all.",
)


class Review(NamedTuple):
    text: str
    item: str
    good: bool


def review(dice: Dice, good: bool) -> Review:
    """An opinion of two or three sentences that agree with each other, in any order."""
    item = dice.pick(tuple(JUDGED))
    loved, hated = (PRAISE, BLAME) if good else (BLAME, PRAISE)
    word, another = dice.draw(loved, 2)
    unlike = dice.pick(hated)
    sentences = [dice.say(OPENINGS, item=item, word=word, a_word=a(word), unlike=unlike)]
    if dice.chance(0.6):
        sentences.append(dice.say(DETAILS, part=dice.pick(JUDGED[item]), word=another, unlike=unlike))
    if dice.chance(0.6) or len(sentences) == 1:
        sentences.append(dice.say(LIKED if good else HATED, item=item))
    return Review(" ".join(sentences), item, good)


# What happens to people, and how they feel then.
EVENTS = {
    "happy": (
        "{name} won the first prize.",
        "{name} got a {thing} for {his} birthday.",
        "{name} found the {thing} that was lost.",
        "A friend gave {name} a {thing}.",
        "{name} danced and sang all day.",
        "{name} smiled at {friend} and laughed.",
    ),
    "sad": (
        "{name} lost {his} {thing}.",
        "The best friend of {name} moved away.",
        "{name} cried all night.",
        "{friend} did not come to the party of {name}.",
        "The old dog of {name} died.",
        "{name} sat alone with tears in {his} eyes.",
    ),
    "angry": (
        "{friend} broke the {thing} of {name}.",
        "{name} shouted at {friend}.",
        "{friend} told a lie about {name}.",
        "{name} kicked the door and yelled.",
        "Someone stole the {thing} of {name}.",
        "{friend} pushed {name} and was rude.",
    ),
    "scared": (
        "{name} saw a big snake.",
        "{name} heard a strange noise at night.",
        "A wolf ran after {name}.",
        "{name} hid under the bed and was pale.",
        "{name} was alone in the dark cave.",
        "{friend} told {name} about a ghost.",
    ),
}


def feeling(dice: Dice, name: str | None = None) -> tuple[str, str, str]:
    """(what happened to a person, the person, the feeling)."""
    name = name or dice.pick(NAMES)
    friend = dice.other(NAMES, name)
    felt = dice.pick(tuple(EVENTS))
    text = dice.say(EVENTS[felt], name=name, friend=friend, thing=dice.pick(THINGS), his=HIS[PRONOUN[name]])
    return text, name, felt
