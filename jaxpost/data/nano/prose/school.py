# SPDX-License-Identifier: Apache-2.0
"""Plain text about school and talk: the words in which tasks are given, used by people who tell about their day."""

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.world import DAYS, FRUITS, NAMES, THINGS

SCHOOL = (
    "{name} learns to read and to write full sentences, letter by letter and word by word.",
    "The teacher wrote a sentence on the board, and {name} read it slowly.",
    "In the test each question had four options, and only one of them was right.",
    "{name} found the right answer to question {n}, and {other} found the wrong one.",
    "Problem {n} was difficult for {name}, but {other} could solve it.",
    "Which of the options was true? Nobody knew it, and {name} did not know it either.",
    "Some claims are true and others are false. We have to judge them and check the facts.",
    "{name} made a claim about a {thing}. Is the claim true? {other} had to check it against the text.",
    "The following day {name} wrote the following words: {thing}, {fruit}.",
    "The witness said something, but {other} did not agree. What was meant by it?",
    "Suppose that the fact is true. Therefore the claim is true, and the step from one to the next is right.",
    "{name} agrees with {other}. Both say the same thing, and anyone can hear it.",
    "Please, said {name}, explain the rule to me. What is missing here?",
    "{name} can compute a sum. A subtraction takes longer.",
    "A pupil must copy the lines from the board and leave a blank between the words, or two blanks.",
    "{name} could not copy the words without a mistake and had to rewrite them.",
    "The numbers began with {n}, and {name} could continue and count up through the numbers to the highest.",
    "At the beginning the number was the lowest, at the end it was the greatest.",
    "{name} knows the alphabet from a to z. It begins with a and ends with z.",
    "Sort the {fruit}s? No, do not mix them, said {name}. The list must be sorted.",
    "{name} owns a {thing}, and {other} owns several. They keep their things in their bags.",
    "The length of the list is {n}. {name} listed the things that were named.",
    "{name} wanted to remove a word, or delete it, and write what remains.",
    "The {thing} is somewhere around here, among the other things, said {name}. Look for it!",
    "{name} took the {thing} apart and could split it into two halves.",
    "How is such a word written? {name} had to point to each letter and spell it.",
    "We change the words, but the meaning stays. That is a paraphrase, said {name}.",
    "The pair {name} and {other} belong together. No pair is nearest to them.",
    "For example, {name} gave an example of each kind.",
    "I offer you a {thing}, said {name}. {other} took the offer.",
    "The paper has a title, a subject and several topics. {name} put a title on the page.",
    "Did you hear something? {name} asked. {other} heard nothing, but anyone could hear it.",
    "Has anyone ever seen it? It is a thing of real life, said {name}, and not a story.",
    "{name} visited many places. At home {name} feels best.",
    "Whom did {name} meet? {name} met an uncle, and the uncle knows {other}.",
    "What can happen? Tell me what happened, said {name}. What is the matter?",
    "A good reader reads line by line. {name} is a reader too and tells what the line says.",
    "The speaker was {name}. Each line of the speaker tells something about {other}.",
    "{name} describes the {thing}, and {other} can describe it too.",
    "Did the guest enjoy it? The guest praises the {thing}, and {other} is praised as well.",
    "{name} is reading and thinks about it. So {name} guesses the feeling of {other}, and all feelings of people.",
    "{name} forgot the {thing} and forgot what was said.",
    "The data stand in a table with a key and a value in each line. {name} knows what each value means.",
    "Fill in the card, said {name}. Each key needs a value. {other} could fill it in.",
    "{name} made a note for us. Our main words are in the note.",
    "The newspaper and the radio report the facts. {name} wrote the report on {day}.",
    "The days are shorter in winter. {name} had to wait for {day}, and {other} came sooner.",
    "Spring has begun. The {thing}s are here by the side of the road.",
    "{name} and {other} stand side by side. Compare them!",
    "The sentence says yes, no or maybe. The answers positive and negative describe opinions.",
    "Out of these words only one is right. Choose well, said {name}.",
    "The story of {name} has a beginning, and there is a reason or a cause for what happened.",
    "Person, place, time, number, reason: a question can ask for each of these.",
    "{name} had to pick one of the following options and took the first.",
)


def school(dice: Dice) -> str:
    name, other = dice.draw(NAMES, 2)
    return dice.say(
        SCHOOL, name=name, other=other, n=dice.between(1, 30), thing=dice.other(THINGS, "box"),
        fruit=dice.other(FRUITS, "peach", "cherry"), day=dice.pick(DAYS),
    )  # fmt: skip


PIECES = ((1, school),)
