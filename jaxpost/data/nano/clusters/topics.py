# SPDX-License-Identifier: Apache-2.0
"""What kind of thing is it: a word, a short text, a question?"""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.subjects import QUESTIONS, TOPICS, question, topic_text
from jaxpost.data.nano.world import KINDS, a
from jaxpost.data.tasks import Row

task = partial(task, "topics")


def word_kind(dice: Dice) -> Row:
    """Choose the kind of a word among four."""
    kind, *others = dice.draw(tuple(KINDS), 4)
    return {"word": dice.pick(KINDS[kind]), "answer": kind, "options": tuple(dice.shuffled([kind, *others]))}


def kind_example(dice: Dice) -> Row:
    """Choose the word of a kind among four."""
    kind, *others = dice.draw(tuple(KINDS), 4)
    answer = dice.pick(KINDS[kind])
    options = dice.shuffled([answer, *(dice.pick(KINDS[other]) for other in others)])
    return {"kind": kind, "a_kind": a(kind), "answer": answer, "options": tuple(options)}


def text_topic(dice: Dice) -> Row:
    topic = dice.pick(tuple(TOPICS))
    return {"text": topic_text(dice, topic), "answer": topic, "options": tuple(TOPICS)}


def question_kind(dice: Dice) -> Row:
    kind = dice.pick(tuple(QUESTIONS))
    return {"question": question(dice, kind), "answer": kind, "options": tuple(QUESTIONS)}


TASKS = (
    task(
        word_kind,
        "word answer",
        (
            "What kind of word is {word}?\n{options_}",
            "{word}\nWhich kind fits?\n{options_}",
            "Choose what {word} is.\n{options_}",
            "{options_}\nOne of these is right for the word {word}. Which one?",
            "Sort the word {word} into one of the following boxes.\n{options_}",
            "A child asks what {word} means. We answer that it is a kind of\n{options_}",
            "Put {word} into its group.\n{options_}",
            "Where does {word} belong?\n{options_}",
        ),
        turned=(
            ("Write the name of one {answer}.", "{word}"),
            ("Think of an example of the kind {answer}.", "{word}"),
        ),
        metric="rank",
        train=5_000,
    ),
    task(
        kind_example,
        "kind answer",
        (
            "Which of these is an example of the kind {kind}?\n{options_}",
            "Kind: {kind}\n{options_}\nExample:",
            "Only one word below is of the kind {kind}. Find it.\n{options_}",
            "{options_}\nName the one that we would call {a_kind}.",
            "I look for {a_kind}. Choose one.\n{options_}",
            "In this list we hid {a_kind}.\n{options_}\nWhere is it?",
            "Point to the word that names {a_kind}.\n{options_}",
            "In the group of the kind {kind} we put\n{options_}",
            "Someone asks for {a_kind}. What do you offer?\n{options_}",
        ),
        turned=(("What kind of thing is {answer}?", "{kind}"),),
        metric="rank",
        train=5_000,
    ),
    task(
        text_topic,
        "text",
        (
            "{text}\nWhat is this text about?\n{options_}",
            "Choose the topic. {text}\n{options_}",
            "Text: {text}\nTopic:",
            "Which topic does the following text belong to? {text}\n{options_}",
            "{options_}\nOne of these topics fits best to this: {text}",
            "In a paper, on which page would you put these lines? {text}\n{options_}",
            "{text}\nThe subject of these lines is",
            "Give a title of one word. {text}\n{options_}",
        ),
        turned=(
            ("Write some lines about the topic {answer}.", "{text}"),
            ("Topic: {answer}\nText:", "{text}"),
        ),
        metric="rank",
    ),
    task(
        question_kind,
        "question",
        (
            "{question}\nWhat kind of answer does this question want?\n{options_}",
            'Someone asks: "{question}" What do they want to know?\n{options_}',
            "Question: {question}\nIt asks for a",
            "Does this ask for a person, a place, a time, a number or a reason? {question}",
            "Choose the kind of the question.\n{options_}\n{question}",
            "The answer to the question {question} would name one of these.\n{options_}",
            "You hear this: {question} What must you tell?\n{options_}",
            "Is it a person, a place, a time, a number or a reason that is asked for?\n{question}",
        ),
        turned=(
            ("Write a question that asks for a {answer}.", "{question}"),
            ("The answer is a {answer}. What was the question?", "{question}"),
        ),
        metric="rank",
    ),
)
