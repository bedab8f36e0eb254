# SPDX-License-Identifier: Apache-2.0
"""Plain text about words: letters, lists and their order, plurals, past forms, opposites, kinds, young animals."""

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.language import OPPOSITES, PAST, PLURALS, SHORT_WORDS, SYNONYMS
from jaxpost.data.nano.world import ANIMALS, KINDS, NAMES, NUMBER_WORDS, THINGS, a

SPELLED = (
    "{word} is spelled {letters}.",
    "The letters of {word} are {letters}.",
    "{letters} makes the word {word}.",
    "{word} has the letters {letters}.",
    "We write {word} with the letters {letters}.",
    "{letters}: that is {word}.",
    "{name} spells {word}: {letters}.",
    "{name} had to spell {word} and wrote {letters}.",
    "{name} had to spell {word} backwards and wrote {mirrored}.",
    "{name} had to join the letters {letters} and wrote {word}.",
    "The length of {word} is {length} letters.",
    "Join {letters} and you get {word}.",
    "{word} has {length} letters: {letters}.",
    "The word {word} has {length} letters.",
    "{word} starts with {first} and ends with {last}.",
    "The first letter of {word} is {first}.",
    "The last letter of {word} is {last}.",
    "{first} is the first letter of {word}, and {last} is the last.",
    "{word} ends with {last}.",
    "{word} starts with {first}.",
    "From the end, {word} has the letters {mirrored}.",
    "{word} is {letters}, and backwards it is {mirrored}.",
    "Backwards the letters of {word} are {mirrored}.",
    "{mirrored} is {word} read from the end.",
)
LISTED = (
    "The words {list} in order are {sorted}.",
    "In alphabetical order, {list} are {sorted}.",
    "{name} sorts {list}: {sorted}.",
    "{name} had to sort {list} and wrote {sorted}.",
    "{name} had to reverse {list} and wrote {mirrored}.",
    "{name} had to turn {list} around and wrote {mirrored}.",
    "{name} had to remove {gone} from {list} and wrote {rest}.",
    "{name} had to count {list} and wrote {length}.",
    "{name} had to take the first of {list} and wrote {first}.",
    "{name} had to take the last of {list} and wrote {last}.",
    "In a dictionary {list} come as {sorted}.",
    "From a to z: {sorted}.",
    "The words {list} backwards are {mirrored}.",
    "{list} in reverse is {mirrored}.",
    "{name} reads {list} from the end: {mirrored}.",
    "From last to first, {list} are {mirrored}.",
    "The first word of {list} is {first}.",
    "The second word of {list} is {second}.",
    "The third word of {list} is {third}.",
    "The last word of {list} is {last}.",
    "In the list {list} the word {second} is second and {third} is third.",
    "{list}: {first} is first and {last} is last.",
    "The list {list} has {length} words.",
    "There are {length} words in {list}.",
    "{name} counts {list}. That is {length} words.",
    "The list {list} without {gone} is {rest}.",
    "We take {gone} from {list}. Now we have {rest}.",
    "{name} has {list}. Without {gone} it is {rest}.",
    "The word {gone} is in the list {list}.",
    "{list}: yes, {gone} is one of them.",
    "{absent} is not in the list {list}.",
    "{list}: no, {absent} is not one of them.",
)
FOURTH = ("The fourth word of {list} is {fourth}.", "In {list} the word {fourth} is in fourth place.")
ORDERED = (
    "The numbers {list} in order are {sorted}.",
    "{name} sorts the numbers {list}: {sorted}.",
    "{name} had to sort {list} and wrote {sorted}.",
    "From small to large, {list} are {sorted}.",
    "{list} sorted from the smallest to the largest: {sorted}.",
)
PLURAL = (
    "One {word}, many {more}.",
    "The plural of {word} is {more}.",
    "{name} had one {word}. Now {name} has ten {more}.",
    "{more} is the plural and {word} is the singular.",
    "{name} had to write {word} in the plural and wrote {more}.",
    "There was only one {word}, but now there are two {more}.",
    "More than one {word} are {more}.",
)
PASTS = (
    "The past of {word} is {did}.",
    "Today they {word}, and yesterday they {did}.",
    "I {word} now. I {did} last week.",
    "{did} is a form of the verb {word}. It is for things that are over.",
    "{name} wants to {word} again, because {name} {did} yesterday.",
    "{name} had to write {word} in the past and wrote {did}.",
    "We {word} today as we {did} before.",
)
OPPOSITE = (
    "The opposite of {a} is {b}.",
    "{a} and {b} are opposites.",
    "What is not {a} may be {b}.",
    "{a} and {b} are a pair of opposites.",
    "{name} had to write the opposite of {a} and wrote {b}.",
    "{name} had to turn {a} into its opposite, {b}.",
    "It is not {a}, it is {b}.",
    "{a} is the opposite of {b}.",
    "{name} says {a}, but {other} says the opposite: {b}.",
    "{a} means the reverse of {b}.",
    "{a} and {c} are no opposites, but {a} and {b} are.",
    "{a} is to {b} as {c} is to {d}.",
    "{a} goes with {b} as {c} goes with {d}.",
    "{a} : {b}, {c} : {d}.",
)
SAME = (
    "{a} means the same as {b}.",
    "{a} is another word for {b}.",
    "{a} and {b} have the same meaning.",
    "For {a} we can also say {b}.",
    "{a} is nearly the same as {b}.",
    "{name} says {a}, and {other} says {b}. They mean the same.",
)
KIND = (
    "{word} is the name of {a_kind}.",
    "{word} is a word of the kind {kind}.",
    "The word {word} belongs to the kind {kind}.",
    "{list} are of one kind: {kind}.",
    "{list} belong together, but {odd} does not.",
    "In the group {list}, {odd} the odd one is {odd}.",
    "{odd} is not of the same kind as {list}.",
    "{word} names {a_kind}, and {odd} names {a_other_kind}.",
    "{name} wrote the word {word}. That is the name of {a_kind}.",
    "{word} is not the name of {a_other_kind}.",
    "Examples of the kind {kind} are {list}.",
    "{name} had to find an example of the kind {kind} and wrote {word}.",
    "{name} had to find the odd one among {list} and {odd}. It was {odd}.",
)
YOUNG = (
    "A young {a} is called {a_b}.",
    "{A_b} is a young {a}.",
    "The {a} has a little {b}.",
    "The mother of the {b} is {a_a}.",
    "{a} goes with {b} as {c} goes with {d}.",
    "{a} is to {b} as {c} is to {d}.",
)
PARENTS = tuple((animal.name, animal.young) for animal in ANIMALS if animal.young != "-")
LISTS = tuple(
    sorted({word for kind, group in KINDS.items() if kind not in ("day", "month") for word in group} | set(THINGS))
)
GROUPS = tuple(KINDS)


def spelled(dice: Dice) -> str:
    word = dice.pick(SHORT_WORDS)
    return dice.say(
        SPELLED, word=word, letters=" ".join(word), mirrored=" ".join(word[::-1]), first=word[0], last=word[-1],
        length=NUMBER_WORDS[len(word)], name=dice.pick(NAMES),
    )  # fmt: skip


def listed(dice: Dice) -> str:
    *words, absent = dice.draw(LISTS, dice.between(3, 8))
    if len(words) == 2:
        return f"{words[0]}, {words[1]} sorted: {', '.join(sorted(words))}. Reversed: {words[1]}, {words[0]}."
    patterns = FOURTH if len(words) > 3 and dice.chance(0.1) else LISTED
    gone = dice.pick(words)
    return dice.say(
        patterns, list=", ".join(words), sorted=", ".join(sorted(words)), mirrored=", ".join(words[::-1]),
        first=words[0], second=words[1], third=words[2], fourth=words[3:4] and words[3], last=words[-1],
        length=NUMBER_WORDS[len(words)], gone=gone, absent=absent, name=dice.pick(NAMES),
        rest=", ".join([word for word in words if word != gone]),
    )  # fmt: skip


def ordered(dice: Dice) -> str:
    numbers = dice.draw(range(100), dice.between(2, 4))
    shown, in_order = ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers)))
    return dice.say(ORDERED, list=shown, sorted=in_order, name=dice.pick(NAMES))


def plural(dice: Dice) -> str:
    word, more = dice.pick(PLURALS)
    return dice.say(PLURAL, word=word, more=more, name=dice.pick(NAMES))


def past(dice: Dice) -> str:
    word, did = dice.pick(PAST)
    return dice.say(PASTS, word=word, did=did, name=dice.pick(NAMES))


def paired(dice: Dice, pairs: tuple[tuple[str, ...], ...], patterns: tuple[str, ...]) -> str:
    (a, b), (c, d) = dice.draw(pairs, 2)
    if dice.chance(0.5):
        a, b, c, d = b, a, d, c
    name, other = dice.draw(NAMES, 2)
    return dice.say(patterns, a=a, b=b, c=c, d=d, name=name, other=other)


def opposite(dice: Dice) -> str:
    return paired(dice, OPPOSITES, OPPOSITE)


def same(dice: Dice) -> str:
    return paired(dice, SYNONYMS, SAME)


def young(dice: Dice) -> str:
    (one, child), (two, other_child) = dice.draw(PARENTS, 2)
    fields = {"a": one, "b": child, "c": two, "d": other_child, "a_a": a(one), "a_b": a(child)}
    return dice.say(YOUNG, **fields, A_b=a(child).capitalize())


def kind(dice: Dice) -> str:
    one, two = dice.draw(GROUPS, 2)
    words = dice.draw(KINDS[one], 3)
    return dice.say(
        KIND, word=words[0], kind=one, a_kind=a(one), a_other_kind=a(two), odd=dice.pick(KINDS[two]),
        list=", ".join(words), name=dice.pick(NAMES),
    )  # fmt: skip


PIECES = (
    (4, spelled), (6, listed), (2, ordered), (1, plural), (1, past), (2, opposite), (2, same), (3, kind), (1, young),
)  # fmt: skip
