# SPDX-License-Identifier: Apache-2.0
"""Is a review good or bad, would the writer come again, and how does a person feel?"""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.opinions import BLAME, JUDGED, PRAISE, feeling, review
from jaxpost.data.tasks import Row

task = partial(task, "sentiment")


def review_sentiment(dice: Dice) -> Row:
    told = review(dice, good=dice.chance(0.5))
    answer = "positive" if told.good else "negative"
    return {"text": told.text, "item": told.item, "answer": answer, "options": ("positive", "negative")}


def recommend(dice: Dice) -> Row:
    told = review(dice, good=dice.chance(0.5))
    return {"text": told.text, "item": told.item, "answer": "yes" if told.good else "no", "options": ("yes", "no")}


def better_review(dice: Dice) -> Row:
    """Which of two things was liked?"""
    first, second = dice.draw(tuple(JUDGED), 2)
    good, bad = dice.pick(PRAISE), dice.pick(BLAME)
    liked = dice.pick((first, second))
    words = (good, bad) if liked == first else (bad, good)
    text = f"The {first} was {words[0]}, but the {second} was {words[1]}."
    return {"text": text, "answer": liked, "options": (first, second)}


def mood(dice: Dice) -> Row:
    text, name, answer = feeling(dice)
    return {"text": text, "name": name, "answer": answer, "options": ("happy", "sad", "angry", "scared")}


TASKS = (
    task(
        review_sentiment,
        "text",
        (
            "{text}\nIs this review positive or negative?",
            "Review: {text}\nSentiment:",
            "What does the writer think of the {item}?\n{text}\n{options_}",
            "{text}\nWould you call this positive or negative?",
            'Someone said: "{text}" Was that a positive or a negative opinion?',
            "Read the review of a {item} and choose its sentiment.\n{text}\n{options_}",
            "Positive or negative: {text}",
            "{text}\n{options_}\nWhich of the two describes this opinion?",
        ),
        turned=(
            ("Write a {answer} review of a {item}.", "{text}"),
            ("What would somebody with a {answer} opinion say about a {item}?", "{text}"),
        ),
        metric="rank",
    ),
    task(
        recommend,
        "text",
        (
            "{text}\nDoes the writer like the {item}?",
            "Did this person enjoy the {item}? {text}\n{options_}",
            "{text}\nShould a friend try this {item}, yes or no?",
            "After reading this, would you want the {item} too?\n{text}",
            "Answer yes if the {item} was liked and no if it was not. {text}",
            "Opinion: {text}\nLiked it:",
            "A guest wrote: {text} Was the guest happy with the {item}?\n{options_}",
            "Is it a good {item}? Here is what people say: {text}",
            "{text}\nWill this person tell friends to try the {item}?",
        ),
        turned=(("Someone was asked if the {item} was good and thinks {answer}. Write the opinion.", "{text}"),),
        metric="rank",
    ),
    task(
        better_review,
        "text",
        (
            "{text}\nWhich of the two was liked?",
            "What was better? {text}\n{options_}",
            "Read this and name the good thing. {text}",
            "{text} So the one to choose is the",
            "Of the two things, which would you try?\n{text}\n{options_}",
            "The writer praises one thing and not the other. Which one is praised? {text}",
            "Opinion: {text}\nBetter one:",
            "{text}\nOne of them made the writer happy. Name it.",
            "Choose what the writer wants again.\n{options_}\n{text}",
        ),
        turned=(("Compare two things and say that the {answer} was the better one.", "{text}"),),
        metric="rank",
    ),
    task(
        mood,
        "text",
        (
            "{text}\nHow does {name} feel?",
            "{text} What is the feeling of {name} now?\n{options_}",
            "Name the feeling of {name}. {text}",
            "How do you think {name} felt?\n{text}\n{options_}",
            "Story: {text}\nFeeling:",
            "Is {name} happy, sad, angry or scared? {text}",
            "Choose the word that tells how {name} is.\n{options_}\n{text}",
            "{text}\nIn one word, {name} is",
        ),
        turned=(
            ("Write a line about {name} who is {answer}.", "{text}"),
            ("Why could {name} be {answer}? Tell what happened.", "{text}"),
        ),
        metric="rank",
    ),
)
