# SPDX-License-Identifier: Apache-2.0
"""The same in other words, nearly the same words with another meaning, and what makes no sense."""

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.world import COLOURS, NAMES, PLACES, THINGS

# (a sentence, the same in other words, nearly the same words with another meaning)
REWORDED = (
    ("{x} gave the {thing} to {y}.", "{y} got the {thing} from {x}.", "{x} got the {thing} from {y}."),
    ("{x} gave {y} a {thing}.", "{y} was given a {thing} by {x}.", "{x} was given a {thing} by {y}."),
    ("{x} sold the {thing} to {y}.", "{y} bought the {thing} from {x}.", "{x} bought the {thing} from {y}."),
    ("{x} is older than {y}.", "{y} is younger than {x}.", "{x} is younger than {y}."),
    ("{x} is taller than {y}.", "{y} is not as tall as {x}.", "{x} is not as tall as {y}."),
    ("{x} lost the {thing}.", "{x} could not find the {thing}.", "{x} could find the {thing}."),
    ("The {thing} belongs to {x}.", "It is the {thing} of {x}.", "It is the {thing} of {y}."),
    ("{x} came before {y}.", "{y} came after {x}.", "{x} came after {y}."),
    (
        "{x} helped {y} in the {place}.",
        "{y} was helped by {x} in the {place}.",
        "{x} was helped by {y} in the {place}.",
    ),
    ("{x} taught {y} to sing.", "{y} learned to sing from {x}.", "{x} learned to sing from {y}."),
    ("{x} and {y} went to the {place}.", "{y} went to the {place} with {x}.", "{y} went to the {place} without {x}."),
    ("{x} has a {colour} {thing}.", "The {thing} of {x} is {colour}.", "The {thing} of {x} is {other}."),
    (
        "The {thing} in the {place} is {colour}.",
        "There is a {colour} {thing} in the {place}.",
        "There is no {colour} {thing} in the {place}.",
    ),
    ("{x} was the first to come.", "Nobody came before {x}.", "Somebody came before {x}."),
    ("All the {thing}s are {colour}.", "Every {thing} is {colour}.", "No {thing} is {colour}."),
    (
        "{x} {verb_past} in the {place}.",
        "The {place} is where {x} {verb_past}.",
        "The {place} is where {y} {verb_past}.",
    ),
    (
        "{x} likes the {place} more than the {place2}.",
        "To {x} the {place} is nicer than the {place2}.",
        "To {x} the {place2} is nicer than the {place}.",
    ),
    ("{x} is near the {place}.", "It is not far from {x} to the {place}.", "It is far from {x} to the {place}."),
    ("{x} was {word} all day.", "All day {x} felt {synonym}.", "All day {x} felt {wrong}."),
    ("The {thing} is {size}.", "It is a {same_size} {thing}.", "It is a {other_size} {thing}."),
)
FELT = (
    ("happy", "glad", "sad"),
    ("sad", "unhappy", "glad"),
    ("tired", "sleepy", "awake"),
    ("sick", "ill", "well"),
    ("scared", "afraid", "brave"),
    ("angry", "cross", "calm"),
)
SIZED = (
    ("big", "large", "small"),
    ("small", "little", "big"),
    ("pretty", "beautiful", "dirty"),
    ("odd", "strange", "normal"),
)
DONE = ("sang", "slept", "danced", "waited", "played", "worked", "read", "swam", "cooked")


def reworded(dice: Dice) -> tuple[str, str, str]:
    """A sentence, the same in other words, and one with nearly the same words that means something else."""
    x, y = dice.draw(NAMES, 2)
    place, place2 = dice.draw(PLACES, 2)
    colour, other = dice.draw(COLOURS, 2)
    word, synonym, wrong = dice.pick(FELT)
    size, same_size, other_size = dice.pick(SIZED)
    thing = dice.other(THINGS, "box")
    fields = {
        "x": x,
        "y": y,
        "place": place,
        "place2": place2,
        "colour": colour,
        "other": other,
        "thing": thing,
        "word": word,
        "synonym": synonym,
        "wrong": wrong,
        "verb_past": dice.pick(DONE),
        "size": size,
        "same_size": same_size,
        "other_size": other_size,
    }
    first, same, different = dice.pick(REWORDED)
    return first.format_map(fields), same.format_map(fields), different.format_map(fields)


# (verb phrase, what goes with it, what does not)
SENSIBLE = (
    (
        "{name} ate {object}.",
        ("the soup", "some bread", "an apple", "the salad", "a pear", "the cake"),
        ("the chair", "the car", "a stone", "the lamp", "the house", "a hammer"),
    ),
    (
        "{name} drank {object}.",
        ("some water", "the milk", "a cup of tea", "the juice", "some cocoa"),
        ("the table", "a ladder", "the road", "a coat", "some wood"),
    ),
    (
        "{name} read {object}.",
        ("a book", "a letter", "the map", "a story", "the paper"),
        ("a potato", "some soup", "the spoon", "a carrot", "the wind"),
    ),
    (
        "{name} wore {object}.",
        ("a coat", "a hat", "the boots", "a scarf", "the dress"),
        ("a bridge", "the kitchen", "a river", "some milk", "the garden"),
    ),
    (
        "{name} drove {object}.",
        ("the car", "a bus", "the truck", "a van"),
        ("a cup", "the shoe", "an onion", "the pillow", "a tree"),
    ),
    (
        "{name} opened {object}.",
        ("the door", "a box", "the window", "the bag"),
        ("the rain", "a banana tree", "the moon", "the colour blue", "a nail"),
    ),
    (
        "{name} climbed {object}.",
        ("a tree", "the ladder", "the hill", "a mountain", "the tower"),
        ("a spoon", "the milk", "a coin", "the song", "a button"),
    ),
    (
        "{object} barked at {name}.",
        ("The dog", "A puppy", "The old dog", "A black dog"),
        ("The table", "A fish", "The pear", "A spoon", "The cup"),
    ),
    (
        "{object} flew over {name}.",
        ("A bee", "The owl", "A plane", "The crow", "An eagle"),
        ("A cow", "The house", "A truck", "The pig", "A table"),
    ),
    (
        "{name} slept in {object}.",
        ("a bed", "the tent", "a hotel", "the house"),
        ("a cup", "the key", "a shoe", "the bottle", "the drum"),
    ),
    (
        "{name} paid with {object}.",
        ("a coin", "some money", "five coins"),
        ("a cloud", "the sea", "a dream", "the moon", "some snow"),
    ),
    (
        "{name} cut the bread with {object}.",
        ("a knife", "the sharp knife", "a big knife"),
        ("a sock", "the pillow", "some soap", "a cloud", "the towel"),
    ),
)


def sensible_pair(dice: Dice) -> tuple[str, str]:
    """A sentence that can be true and one that cannot."""
    pattern, good, bad = dice.pick(SENSIBLE)
    name = dice.pick(NAMES)
    return pattern.format(name=name, object=dice.pick(good)), pattern.format(name=name, object=dice.pick(bad))
