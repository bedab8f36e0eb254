# SPDX-License-Identifier: Apache-2.0
"""Plain text about the world: animals, homes, tools, jobs, sizes, the calendar, sense and nonsense."""

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.scenes.wordings import sensible_pair
from jaxpost.data.nano.world import ABILITIES, ANIMALS, DAYS, JOBS, MONTHS, NAMES, SIZES, USES, a

CAN = (
    "{An_animal} can {ability}.",
    "Every {animal} can {ability}.",
    "The {animal} is able to {ability}.",
    "{name} saw how the {animal} can {ability}.",
    "Can {an_animal} {ability} well? Yes, it can.",
    "Yes, {an_animal} can {ability}.",
)
CANNOT = (
    "{An_animal} cannot {ability}.",
    "No {animal} can {ability}.",
    "The {animal} is not able to {ability}.",
    "Nobody has seen {an_animal} {ability}.",
    "Can {an_animal} {ability} well? No, it cannot.",
    "No, {an_animal} cannot {ability}.",
)
LIVES = (
    "The {animal} lives in the {home}.",
    "You can see the {animal} in the {home}.",
    "The home of the {animal} is the {home}.",
    "{name} looked for the {animal} in the {home}.",
    "In the {home} there lives {an_animal}.",
    "The {home} is the best place for the {animal}.",
    "{An_animal} is {a_kind}. It lives in the {home}.",
    "{An_animal} is {a_kind} with {legs} legs.",
)
USED = (
    "With {a_tool} we can {use}.",
    "We use {a_tool} to {use}.",
    "{name} needs {a_tool} to {use}.",
    "To {use}, take {a_tool}.",
    "{A_tool} is made to {use}.",
    "{A_tool} helps to {use}.",
    "{name} wants to {use}. So {name} needs {a_tool}.",
    "The use of {a_tool} is to {use}.",
)
WORKS = (
    "{A_job} {does}.",
    "The {job} {does} all day.",
    "{name} is {a_job}. {name} {does} in the {place}.",
    "In the {place} works {a_job}, who {does}.",
    "A person who {does} is called {a_job}.",
    "The one who {does} is the {job}.",
    "{name} {does}, because {name} is {a_job}.",
    "The job of {name} is {job}. {name} works in the {place}.",
)
BIGGER = (
    "{A_big} is bigger than {a_small}.",
    "{A_small} is smaller than {a_big}.",
    "The {big} is big, but the {small} is small.",
    "The {big} needs more space than the {small}.",
    "Of the {big} and the {small}, the {small} is smaller.",
    "Of the {small} and the {big}, the bigger one is the {big}.",
    "The {small} fits into a bag that is too small for the {big}.",
    "The {big} is larger in size than the {small}.",
)
SOONER = (
    "{one} comes before {two}.",
    "In the {unit} {two} comes after {one}.",
    "{one} is earlier in the {unit} than {two}.",
    "First comes {one}, then comes {two}.",
    "{one} and {two}: the first in the {unit} is {one}.",
    "{two} is later than {one}.",
)
SENSE = (
    "{good} That makes sense.",
    "{good} That can be true.",
    "{bad} That makes no sense.",
    "{bad} That is not possible.",
    "It is silly to say: {bad} We should say: {good}",
    "{good} Why not? But who would say this: {bad}",
    "{bad} No, that is strange. {good} That is more likely.",
)


def ability(dice: Dice) -> str:
    animal, does = dice.pick(ANIMALS), dice.pick(ABILITIES)
    can = does in animal.can
    if not can and dice.chance(0.5):
        does, can = dice.pick(animal.can), True
    named = a(animal.name)
    return dice.say(
        CAN if can else CANNOT, an_animal=named, An_animal=named.capitalize(), animal=animal.name, ability=does,
        name=dice.pick(NAMES),
    )  # fmt: skip


def home(dice: Dice) -> str:
    animal = dice.pick(ANIMALS)
    named = a(animal.name)
    return dice.say(
        LIVES, animal=animal.name, an_animal=named, An_animal=named.capitalize(), home=animal.home,
        a_kind=a(animal.kind), legs=animal.legs or "no", name=dice.pick(NAMES),
    )  # fmt: skip


def tool(dice: Dice) -> str:
    name, use = dice.pick(USES)
    named = "soap" if name == "soap" else a(name)
    return dice.say(USED, a_tool=named, A_tool=named.capitalize(), use=use, name=dice.pick(NAMES))


def job(dice: Dice) -> str:
    name, does, place = dice.pick(JOBS)
    named = a(name)
    return dice.say(
        WORKS, job=name, a_job=named, A_job=named.capitalize(), does=does, place=place, name=dice.pick(NAMES)
    )


def size(dice: Dice) -> str:
    big, small = dice.draw(tuple(SIZES), 2)
    while abs(SIZES[big] - SIZES[small]) < 2:
        big, small = dice.draw(tuple(SIZES), 2)
    if SIZES[big] < SIZES[small]:
        big, small = small, big
    a_big, a_small = a(big), a(small)
    return dice.say(
        BIGGER, big=big, small=small, a_big=a_big, a_small=a_small,
        A_big=a_big.capitalize(), A_small=a_small.capitalize(),
    )  # fmt: skip


def calendar(dice: Dice) -> str:
    items, unit = dice.pick(((DAYS, "week"), (MONTHS, "year")))
    one, two = sorted(dice.draw(range(len(items)), 2))
    if two == one + 1 and dice.chance(0.3):
        return f"After {items[one]} we have {items[two]}."
    return dice.say(SOONER, one=items[one], two=items[two], unit=unit)


def sense(dice: Dice) -> str:
    good, bad = sensible_pair(dice)
    return dice.say(SENSE, good=good, bad=bad)


PIECES = ((2, ability), (2, home), (2, tool), (2, job), (3, size), (1, calendar), (2, sense))
