# SPDX-License-Identifier: Apache-2.0
"""Small pieces of text together with what is true in them: what tasks ask about and what the books tell.

Tasks and pre-training text are made from the same scenes, so that tuning has to teach the form of a question only.
"""

from typing import NamedTuple

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.world import COLOURS, HIM, HIS, NAMES, PLACES, PRONOUN, THINGS, a

GO = (
    "{name} went to the {place}.",
    "{name} walked to the {place}.",
    "{name} ran to the {place}.",
    "{name} drove to the {place}.",
    "{name} came to the {place}.",
)
GET = (
    "{name} found a {colour} {thing}.",
    "{name} bought a {colour} {thing}.",
    "{name} picked up a {colour} {thing}.",
    "{name} has a {colour} {thing}.",
    "{name} made a {colour} {thing}.",
)
GIVE = (
    "{giver} gave the {thing} to {taker}.",
    "{giver} handed the {thing} to {taker}.",
    "{giver} gave {taker} the {thing}.",
    "{taker} took the {thing} from {giver}.",
    "{taker} got the {thing} from {giver}.",
)


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


class Trail(NamedTuple):
    """Sentences in which something changes hands or place, and where it all ends."""

    text: str
    subject: str
    answer: str
    before: str


def journey(dice: Dice, moves: int, people: int = 2) -> Trail:
    """People move about; where is the one who is asked about in the end?"""
    names = dice.draw(NAMES, people)
    where: dict[str, list[str]] = {name: [] for name in names}
    sentences = []
    for step in range(moves):
        name = names[step] if step < people else dice.pick(names)
        place = dice.other(PLACES, *where[name])
        where[name].append(place)
        sentences.append(dice.say(GO, name=name, place=place))
    name = dice.pick(names)
    return Trail(" ".join(sentences), name, where[name][-1], where[name][0])


def handover(dice: Dice, gifts: int) -> Trail:
    """A thing goes from hand to hand; who has it in the end?"""
    names = dice.draw(NAMES, 3)
    thing = dice.pick(THINGS)
    owner = names[0]
    sentences = [dice.say(GET, name=owner, colour=dice.pick(COLOURS), thing=thing)]
    for _ in range(gifts):
        taker = dice.other(names, owner)
        sentences.append(dice.say(GIVE, giver=owner, taker=taker, thing=thing))
        owner = taker
    return Trail(" ".join(sentences), thing, owner, names[0])


class Count(NamedTuple):
    """A number of things that changes once or twice."""

    text: str
    name: str
    things: str
    answer: int


MORE = (
    "{She} gets {n} more.",
    "{She} finds {n} more {things}.",
    "{other} gives {her} {n} {things}.",
    "{She} buys {n} more {things}.",
)
LESS = (
    "{She} loses {n}.",
    "{She} gives {n} {things} to {other}.",
    "{other} takes {n} of {hers}.",
    "{She} sells {n} {things}.",
)


def counting(dice: Dice, changes: int = 1, limit: int = 20) -> Count:
    """How many are left when some come and some go. Never below one, never above the limit."""
    name, other = dice.draw(NAMES, 2)
    things = dice.pick(THINGS[:-1]) + "s"
    things = {"boxs": "boxes"}.get(things, things)
    she = PRONOUN[name]
    total = dice.between(2, limit - 2)
    sentences = [f"{name} has {total} {things}."]
    for _ in range(changes):
        grows = total < 3 or (total < limit - 1 and dice.chance(0.5))
        amount = dice.between(1, min(9, limit - total if grows else total - 1))
        patterns = MORE if grows else LESS
        fields = {"She": she.capitalize(), "her": HIM[she], "hers": "hers" if she == "she" else "his"}
        sentences.append(dice.say(patterns, n=amount, other=other, things=things, **fields))
        total += amount if grows else -amount
    return Count(" ".join(sentences), name, things, total)


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
BLAME = (
    "terrible awful horrible boring dreadful ugly dull annoying useless disappointing nasty unpleasant"
).split()
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


class Person(NamedTuple):
    """A record of a person, as key: value lines and as a sentence."""

    name: str
    age: int
    job: str
    pet: str
    food: str
    she: str
    his: str


def person(dice: Dice, jobs: tuple[str, ...], pets: tuple[str, ...], foods: tuple[str, ...]) -> Person:
    name = dice.pick(NAMES)
    she = PRONOUN[name]
    return Person(
        name, dice.between(20, 79), dice.pick(jobs), dice.pick(pets), dice.pick(foods), she, HIS[she]
    )
