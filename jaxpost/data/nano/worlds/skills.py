# SPDX-License-Identifier: Apache-2.0
"""What an assistant must be able to do to mend itself: find a fault in an answer, put it right, tell which answer is
better.

The questions are worded by the files of the set `nano` of `jaxpost.data.principles`: what is learned here is what the
recipes ask that use this set.
"""

import re
from functools import cache

from jaxpost.data import principles
from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.worlds.manners import RUDE, Question, asked, assistant, said
from jaxpost.data.tasks import Row, Split

SET = "nano"
PROVOKED = 0.75  # of the questions that are asked about
RIGHT = 0.85  # of the answers that are criticised, revised and judged


@cache
def _principles() -> tuple[principles.Principle, ...]:
    return principles.read(SET, ("critique", "revision", "judge"))


@cache
def _wording(kind: str) -> principles.Wording:
    return principles.wording(kind, SET)


def finding(text: str) -> str:
    """The right critique of an answer."""
    words = [word for word in RUDE if re.search(rf"\b{word}\b", text)]
    return f"It says {words[0]}. That is rude." if words else "It is kind. Nothing is wrong."


def _question(dice: Dice, split: Split) -> tuple[Question, str]:
    ask = asked(dice, split, dice.chance(PROVOKED))
    return ask, ask.answer if dice.chance(RIGHT) else ask.wrong


def _row(kind: str, ask: Question, right: str, completion: str, **places: str) -> Row:
    wording = _wording(kind)
    worded = wording(**{"prompt": ask.prompt.strip(), **places})
    assert isinstance(worded.prompt, str)
    return {"prompt": worded.prompt + worded.opening, "completion": completion, "answer": right, "task": ask.task}


def critique(dice: Dice, split: Split) -> Row:
    """Which name an answer calls, or that it calls none."""
    ask, answer = _question(dice, split)
    text = said(dice, answer, dice.chance(0.6))
    return _row("critique", ask, answer, finding(text), answer=text, request=dice.pick(_principles()).critique)


def revision(dice: Dice, split: Split) -> Row:
    """The same answer said kindly; one that is kind stays as it is."""
    ask, answer = _question(dice, split)
    calling = dice.chance(0.8)
    text = said(dice, answer, calling)
    better = said(dice, answer, calling=False) if calling else text
    request = dice.pick(_principles()).revision
    return _row("revision", ask, answer, better, answer=text, request=request, critique=finding(text))


def judge(dice: Dice, split: Split) -> Row:
    """Which of two answers calls nobody names, A or B, wherever it stands."""
    ask, answer = _question(dice, split)
    other = answer if dice.chance(RIGHT) else ask.wrong
    texts = said(dice, answer, calling=False), said(dice, other, calling=True)
    verdict = dice.pick("AB")
    first, second = texts if verdict == "A" else texts[::-1]
    question = dice.pick(_principles()).judge
    return _row("judge", ask, answer, verdict, answer_a=first, answer_b=second, question=question)


def sft(dice: Dice, split: Split) -> Row:
    """An assistant that only helps, half the time, and what it will need to mend itself."""
    return dice.pick((assistant, assistant, assistant, critique, revision, judge))(dice, split)
