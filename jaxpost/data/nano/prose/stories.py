# SPDX-License-Identifier: Apache-2.0
"""Plain text with people in it: errands, gifts, trips, reasons, moods, and what follows from them."""

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.scenes.changes import handover, journey, pronoun
from jaxpost.data.nano.scenes.errands import errands, reason, tell
from jaxpost.data.nano.scenes.opinions import feeling
from jaxpost.data.nano.scenes.records import SKIES, WINDS
from jaxpost.data.nano.scenes.wordings import reworded
from jaxpost.data.nano.world import COLOURS, DAYS, MONTHS, NAMES, PLACES, THINGS

KNOWN = (
    "So {name} had the {thing}.",
    "{name} was in the {place}.",
    "The {thing} of {name} was {colour}.",
    "The {colour} {thing} was in the {place}.",
    "The {thing} belongs to {name}.",
    "It is true that {name} had a {thing}.",
    "It is false that {name} had no {thing}.",
    "It is false that the {thing} was {other_colour}.",
    "It is not true that {name} was in the {other_place}.",
    "So it is true that the {thing} was {colour}.",
    "Was {name} in the {place}? Yes.",
    "Was the {thing} {other_colour}? No, it was {colour}.",
    "Did {name} have a {other_thing} too? Maybe, we do not know.",
    "From this we know that {name} was in the {place}.",
    "It follows that {name} had a {thing}.",
    "It does not follow that {name} had a {other_thing}.",
    "Maybe {name} was alone. We cannot be sure.",
    "We do not know if the {thing} was cheap.",
    "The colour of the {thing} was {colour}.",
    "The owner of the {thing} is {name}.",
)
OWNS = (
    "So {name} has the {thing} now.",
    "Now {name} has the {thing}.",
    "In the end {name} has the {thing}.",
    "The {thing} is now with {name}, and no more with {first}.",
    "First it was with {first}, but now {name} has it.",
    "So the owner of the {thing} is {name}.",
)
ENDS = (
    "So {name} is in the {place} now.",
    "Now {name} is in the {place}.",
    "In the end {name} is in the {place}.",
    "The last place of {name} is the {place}.",
    "First {name} went to the {first}, and now {name} is in the {place}.",
    "We find {name} in the {place}.",
    "The trip of {name} started in the {first}.",
)
WHY = (
    "The reason is that {she} was {feeling}.",
    "Why? Because {she} was {feeling}.",
    "{She} did it because {she} was {feeling}.",
    "So the cause is clear: {she} was {feeling}.",
    "{name} was {feeling}.",
)
MEANT = (
    'Here "{she}" is {name}.',
    "I mean {name}.",
    '"{she}" means {name}.',
    "The word {she} stands for {name} here.",
    "That was {name}, not {other}.",
)
FELT = (
    "{name} was {feeling}.",
    "So {name} was {feeling}.",
    "That made {name} {feeling}.",
    "{name} felt {feeling}.",
    "We see that {name} is {feeling}.",
    "{feeling} is the word for how {name} felt.",
)
AGAIN = (
    "{first} In other words, {second}",
    "{first} That is the same as this: {second}",
    "{first} That means: {second}",
    "{first} We can also say: {second}",
    "{first} It does not mean this: {different}",
    "{first} That is not the same as this: {different}",
    '"{first}" means the same as "{second}"',
    '"{first}" does not mean "{different}"',
    "{second} That is another way to say this: {first}",
    "{first} Said with different words: {second}",
    "{first} {name} had to say it in other words and wrote: {second}",
)


def errand_story(dice: Dice) -> str:
    told = errands(dice, dice.between(1, 3))
    text = [tell(dice, errand) for errand in told]
    for _ in range(dice.between(1, 2)):
        known = dice.pick(told)
        text.append(
            dice.say(
                KNOWN,
                **known._asdict(),
                other_colour=dice.other(COLOURS, known.colour),
                other_place=dice.other(PLACES, known.place),
                other_thing=dice.other(THINGS, known.thing),
            )  # fmt: skip
        )
    return " ".join(text)


def gift_story(dice: Dice) -> str:
    told = handover(dice, dice.between(1, 3))
    return f"{told.text} {dice.say(OWNS, name=told.answer, thing=told.subject, first=told.before)}"


def trip_story(dice: Dice) -> str:
    told = journey(dice, dice.between(2, 5))
    return f"{told.text} {dice.say(ENDS, name=told.subject, place=told.answer, first=told.before)}"


def why_story(dice: Dice) -> str:
    told = reason(dice)
    fields = {"name": told.name, "she": told.she, "She": told.she.capitalize(), "feeling": told.feeling}
    after = dice.say(WHY, **fields)
    if dice.chance(0.5):
        return f"{told.text} {after}"
    return f"{told.text} {reason(dice, dice.other(NAMES, told.name)).text} {told.name} {told.deed}. {after}"


def pronoun_story(dice: Dice) -> str:
    text, she, name, names = pronoun(dice)
    other = names[0] if names[1] == name else names[1]
    return f"{text} {dice.say(MEANT, she=she, name=name, other=other)}"


def mood_story(dice: Dice) -> str:
    text, name, felt = feeling(dice)
    return f"{text} {dice.say(FELT, name=name, feeling=felt)}"


def again(dice: Dice) -> str:
    first, second, different = reworded(dice)
    return dice.say(AGAIN, first=first, second=second, different=different, name=dice.pick(NAMES))


MORNINGS = (
    "On {day} it was {sky}.",
    "It was a {sky} {day} in {month}.",
    "{name} got up early on {day}.",
    "One {day} {name} had breakfast with {friend}.",
    "A {wind} wind came up on {day}.",
)
EVENINGS = (
    "Then {name} went home.",
    "In the evening it was {sky}.",
    "{name} slept well that night.",
    "What a day for {name} and {friend}!",
    "At night {name} told {friend} about it.",
    "Later {friend} came to see {name}.",
)


def day_story(dice: Dice) -> str:
    """A day of one person: an errand, a reason, a mood, in this order."""
    errand = errands(dice, 1)[0]
    name = errand.name
    fields = {"name": name, "friend": dice.other(NAMES, name), "day": dice.pick(DAYS), "month": dice.pick(MONTHS)}
    fields |= {"sky": dice.pick(SKIES), "wind": dice.pick(WINDS)}
    text = [dice.say(MORNINGS, **fields), tell(dice, errand)]
    if dice.chance(0.6):
        text.append(reason(dice, name).text)
    if dice.chance(0.6):
        text.append(feeling(dice, name)[0])
    text.append(dice.say(EVENINGS, **fields))
    if dice.chance(0.7):
        text.append(dice.say(KNOWN[:5], **errand._asdict()))
    return " ".join(text)


PIECES = (
    (5, errand_story), (3, gift_story), (3, trip_story), (2, why_story), (2, pronoun_story), (2, mood_story),
    (3, again), (4, day_story),
)  # fmt: skip
