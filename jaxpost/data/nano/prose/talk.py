# SPDX-License-Identifier: Apache-2.0
"""Plain text in which people talk: questions with their answers.

The questions are worded otherwise than those of the tasks, and none is an instruction: a base model that has read
them knows what an answer is, and still has to be taught to follow what it is told.
"""

from collections.abc import Callable

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.language import OPPOSITES, SHORT_WORDS, SYNONYMS
from jaxpost.data.nano.scenes.changes import handover, journey
from jaxpost.data.nano.scenes.errands import REASONS, errands, reason, tell
from jaxpost.data.nano.scenes.opinions import review
from jaxpost.data.nano.scenes.wordings import reworded
from jaxpost.data.nano.world import ABILITIES, ANIMALS, HOMES, JOBS, KINDS, NAMES, PLACES, SIZES, USES, a

Exchange = tuple[str, str, str]  # a question, its answer, and an answer of the same sort that is wrong

LIKED = ("So you liked it?", "You had fun then?", "Was it fine for you?", "So all was good?")
HEARD = ("You think that {claim}?", "So {claim}?", "You mean that {claim}?", "Is it so that {claim}?")
GROUPS, SIZED = tuple(KINDS), tuple(SIZES)
YES, NO = ("yes", "no"), ("no", "yes")


def sum_asked(dice: Dice) -> Exchange:
    c = dice.between(2, 99)
    b = dice.between(1, c)
    off = dice.pick((1, 2, 10))
    if dice.chance(0.5):
        asked = dice.say(("And {a} plus {b}?", "Do you know {a} + {b}?", "How much will {a} and {b} be?"), a=c - b, b=b)
        return asked, str(c), str(c + off)
    asked = dice.say(("And {c} minus {b}?", "Do you know {c} - {b}?", "How much is {c} less {b}?"), c=c, b=b)
    return asked, str(c - b), str(c - b + off)


def paired(dice: Dice, pairs: tuple[tuple[str, ...], ...], patterns: tuple[str, ...]) -> Exchange:
    one, two = dice.draw(pairs, 2)
    word, answer = one if dice.chance(0.5) else one[::-1]
    return dice.say(patterns, w=word), answer, dice.pick(two)


def opposite_asked(dice: Dice) -> Exchange:
    return paired(dice, OPPOSITES, ("Do you know the opposite of {w}?", "And what is not {w}?", "The opposite of {w}?"))


def same_asked(dice: Dice) -> Exchange:
    return paired(dice, SYNONYMS, ("Do you know another word for {w}?", "What else can I say for {w}?"))


def kind_asked(dice: Dice) -> Exchange:
    kind, other = dice.draw(GROUPS, 2)
    word = dice.pick(KINDS[kind])
    if dice.chance(0.5):
        return dice.say(("So what is {w}?", "Is {w} {x} or {y}?"), w=word, x=a(kind), y=a(other)), kind, other
    right = dice.chance(0.5)
    return f"Is {word} the name of {a(kind if right else other)}?", *(YES if right else NO)


def ability_asked(dice: Dice) -> Exchange:
    animal, does = dice.pick(ANIMALS), dice.pick(ABILITIES)
    patterns = ("Do you know if {x} can {d}?", "Have you seen {x} {d}?", "Does {x} {d}?")
    return dice.say(patterns, x=a(animal.name), d=does), *(YES if does in animal.can else NO)


def home_asked(dice: Dice) -> Exchange:
    animal = dice.pick(ANIMALS)
    asked = dice.say(("Where can I see the {x}?", "And where is the home of the {x}?"), x=animal.name)
    return asked, animal.home, dice.other(HOMES, animal.home)


def tool_asked(dice: Dice) -> Exchange:
    (tool, use), (other, _) = dice.draw(USES, 2)
    return dice.say(("I want to {u}. What helps?", "How can I {u}? With what?"), u=use), tool, other


def job_asked(dice: Dice) -> Exchange:
    (job, does, _), (other, _, _) = dice.draw(JOBS, 2)
    return dice.say(("Which job has the one who {d}?", "My father {d}. So he is a what?"), d=does), job, other


def size_asked(dice: Dice) -> Exchange:
    one, two = dice.draw(SIZED, 2)
    while abs(SIZES[one] - SIZES[two]) < 2:
        one, two = dice.draw(SIZED, 2)
    big, small = (one, two) if SIZES[one] > SIZES[two] else (two, one)
    if dice.chance(0.5):
        return f"The {one} and the {two}: which one is big?", big, small
    return f"The {one} and the {two}: which one is small?", small, big


def spelling_asked(dice: Dice) -> Exchange:
    word, other = dice.draw(SHORT_WORDS, 2)
    if dice.chance(0.5):
        return f"Which letters are in {word}?", " ".join(word), " ".join(other)
    return f"I read {' '.join(word)}. What does that make?", word, other


def errand_asked(dice: Dice) -> Exchange:
    told = errands(dice, 2)
    text, (known, other) = " ".join([tell(dice, errand) for errand in told]), dice.shuffled(told)
    asked = dice.pick(
        (
            (f"And who had the {known.thing}?", known.name, other.name),
            (f"And where was {known.name} then?", known.place, other.place),
            (f"And the {known.thing} of {known.name}, which colour was it?", known.colour, other.colour),
            (f"So {known.name} was in the {known.place}?", *YES),
            (f"So {known.name} was in the {other.place}?", *NO),
            (f"So {known.name} had nothing?", *NO),
            (f"Did {known.name} like it?", "maybe", dice.pick(YES)),
        )
    )
    return f"{text} {asked[0]}", asked[1], asked[2]


def change_asked(dice: Dice) -> Exchange:
    if dice.chance(0.5):
        gift = handover(dice, dice.between(1, 2))
        wrong = gift.before if gift.before != gift.answer else dice.other(NAMES, gift.answer)
        return f"{gift.text} So who has it?", gift.answer, wrong
    trip = journey(dice, dice.between(2, 4))
    wrong = trip.before if trip.before != trip.answer else dice.other(PLACES, trip.answer)
    return f"{trip.text} So where is {trip.subject}?", trip.answer, wrong


def why_asked(dice: Dice) -> Exchange:
    told = reason(dice)
    wrong = told.feeling
    while wrong == told.feeling:
        wrong = dice.pick(REASONS)[0]
    asked = f"{told.text} Why did {told.name} do that?"
    return asked, f"{told.she} was {told.feeling}", f"{told.she} was {wrong}"


def opinion_asked(dice: Dice) -> Exchange:
    good = dice.chance(0.5)
    return f"{review(dice, good).text} {dice.pick(LIKED)}", *(YES if good else NO)


def meaning_asked(dice: Dice) -> Exchange:
    first, same, different = reworded(dice)
    right = dice.chance(0.5)
    shown = (same if right else different)[:-1]
    shown = shown if shown.split()[0] in NAMES else shown[0].lower() + shown[1:]
    return f"{first} {dice.say(HEARD, claim=shown)}", *(YES if right else NO)


ASKED: tuple[Callable[[Dice], Exchange], ...] = (
    sum_asked, opposite_asked, same_asked, kind_asked, ability_asked, home_asked, tool_asked, job_asked, size_asked,
    spelling_asked, errand_asked, errand_asked, change_asked, change_asked, why_asked, opinion_asked, meaning_asked,
)  # fmt: skip

FORMS = (
    "{x}: {question}\n{y}: {Answer}.",
    "{x}: {question}\n{y}: {Answer}.",
    '{x} asked {y}: "{question}" The answer was "{answer}".',
    '"{question}" said {x}. "{Answer}," said {y}.',
    "{question} {Answer}.",
    "{question}\n{answer}",
    "{question} Well, {answer}.",
    '{y} heard {x} ask: "{question}" {y} said: "{Answer}."',
    "Question: {question}\nAnswer: {answer}",
)
CHOICE = (
    "{question}\nOPTIONS:\n- {one}\n- {two}\n{y} took {answer}.",
    "{question} There were two options, {one} and {two}. {y} said {answer}.",
    "{x}: {question} I think it is {one} or {two}.\n{y}: It is {answer}.",
    "{question} Is it {one} or {two}? It is {answer}.",
    "OPTIONS:\n- {one}\n- {two}\n{x} asks: {question} The right one is {answer}.",
)


def exchange(dice: Dice) -> str:
    question, answer, _ = dice.pick(ASKED)(dice)
    x, y = dice.draw(NAMES, 2)
    return dice.say(FORMS, question=question, answer=answer, Answer=answer[0].upper() + answer[1:], x=x, y=y)


def choice(dice: Dice) -> str:
    """A question with two possible answers, one of them right."""
    question, answer, wrong = dice.pick(ASKED)(dice)
    one, two = (answer, wrong) if dice.chance(0.5) else (wrong, answer)
    x, y = dice.draw(NAMES, 2)
    return dice.say(CHOICE, question=question, answer=answer, one=one, two=two, x=x, y=y)


PIECES = ((12, exchange), (6, choice))
