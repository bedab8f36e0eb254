# SPDX-License-Identifier: Apache-2.0
"""Things change hands, people change places, numbers change: text and how it all ends."""

from typing import NamedTuple

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.world import BOYS, COLOURS, GIRLS, HIM, NAMES, PLACES, PRONOUN, THINGS

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
    """How many are left when some come and some go. Never below two, never above the limit."""
    name, other = dice.draw(NAMES, 2)
    things = dice.pick(THINGS[:-1]) + "s"
    things = {"boxs": "boxes"}.get(things, things)
    she = PRONOUN[name]
    total = dice.between(3, limit - 2)
    sentences = [f"{name} has {total} {things}."]
    for _ in range(changes):
        grows = total < 4 or (total < limit - 1 and dice.chance(0.5))
        amount = dice.between(1, min(9, limit - total if grows else total - 2))
        patterns = MORE if grows else LESS
        fields = {"She": she.capitalize(), "her": HIM[she], "hers": "hers" if she == "she" else "his"}
        sentences.append(dice.say(patterns, n=amount, other=other, things=things, **fields))
        total += amount if grows else -amount
    return Count(" ".join(sentences), name, things, total)


STEPS = (1, 1, 2, 3, 4, 5, 10, -1, -2, -5)


def number_row(dice: Dice, shown: int) -> tuple[str, int]:
    """Numbers in equal steps between 0 and 99, and the one that comes next."""
    step = dice.pick(STEPS)
    way = abs(step) * shown
    low = dice.between(0, 99 - way)
    start = low if step > 0 else low + way
    return ", ".join([str(start + step * place) for place in range(shown)]), start + step * shown


PRONOUN_LINES = (
    "{x} met {y} in the {place}. {She} had a {thing}.",
    "{x} saw {y} because {she} was in the {place}.",
    "{x} and {y} went to the {place}. There {she} lost a {thing}.",
    "When {x} called {y}, {she} was in the {place}.",
    "{x} told {y} that {she} had the {thing}.",
    "{x} wrote to {y}. {She} was {feeling}.",
    "{x} sat next to {y}. Then {she} went to the {place}.",
)


def pronoun(dice: Dice) -> tuple[str, str, str, tuple[str, str]]:
    """(text about a girl and a boy, the pronoun in it, whom it means, both names)."""
    x, y = dice.shuffled((dice.pick(GIRLS), dice.pick(BOYS)))
    meant = dice.pick((x, y))
    she = PRONOUN[meant]
    line = dice.pick(PRONOUN_LINES)
    text = line.format(
        x=x, y=y, she=she, She=she.capitalize(), place=dice.pick(PLACES), thing=dice.pick(THINGS),
        feeling=dice.pick(("happy", "sad", "tired", "angry", "sick", "hungry")),
    )  # fmt: skip
    return text, she, meant, (x, y)
