# SPDX-License-Identifier: Apache-2.0
"""Rank classification: of a closed set of answers, which one does the model find likeliest?

Nothing is sampled, so a model that knows the answer but not how to stop is not punished for it (Wei et al. 2021,
https://arxiv.org/abs/2109.01652, section 2.3; Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxpost.data.tasks import Example
from jaxpost.data.text import Part
from jaxpost.data.tokenizers import Tokenizer, tokenise
from jaxpost.faults import Fault

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of what follows it."""


class Scores(NamedTuple):
    """Of each pair: the log-probability of the completion given the prompt (nats, float64[n]), and how many tokens
    it has (int64[n]). `cut` counts the pairs that were too long and lost the beginning of their prompt."""

    logprobs: np.ndarray
    counts: np.ndarray
    cut: int = 0


Score = Callable[[Sequence[Pair]], Scores]
"""Whoever scores makes the batches: it sees all pairs at once."""


@dataclass(frozen=True)
class Question:
    """One prompt, the completions that may follow it, and which of them is right."""

    pairs: tuple[Pair, ...]
    answer: int


class Choice(NamedTuple):
    """The likeliest option by log-probability, and by log-probability per token; -1 where no score is a number."""

    plain: int
    normalised: int


@dataclass(frozen=True)
class Ranking:
    """The share of questions answered right, both ways, each question's choice, and how many of the prompts' copies
    had to be cut short."""

    plain: float
    normalised: float
    choices: tuple[Choice, ...]
    cut: int = 0


def question(tokenizer: Tokenizer, example: Example) -> Question:
    """The example's options, each tokenised behind the prompt exactly as training would (eos included, so that an
    option that begins another one is not favoured)."""
    if not example.options or example.target not in example.options:
        raise Fault(
            f"task {example.task or '(unnamed)'}: rank classification needs the target {example.target!r} to be one of "
            f"its options, which are {list(example.options or ())}; judge free text by exact match or ROUGE"
        )

    def pair(option: str) -> Pair:
        tokens = tokenise(tokenizer, (Part(example.prompt, False), Part(option, True, opens=True)))
        begins = int(np.argmax(tokens.trained))
        return tokens.ids[:begins].tolist(), tokens.ids[begins:].tolist()

    return Question(tuple(pair(option) for option in example.options), example.options.index(example.target))


def choose(scores: Scores) -> Choice:
    """The best of one question's options. Equal scores go to the option that stands first; one that is not a number
    is never chosen."""
    plain = np.asarray(scores.logprobs, np.float64)
    return Choice(_best(plain), _best(plain / np.maximum(scores.counts, 1)))


def rank(questions: Sequence[Question], score: Score) -> Ranking:
    """All options of all questions, scored in one call."""
    if not questions:
        raise Fault("rank classification: there is no example to rank; check the split and the number of examples")
    scores = score([pair for question in questions for pair in question.pairs])
    ends = np.cumsum([len(question.pairs) for question in questions])
    parts = zip(np.split(scores.logprobs, ends[:-1]), np.split(scores.counts, ends[:-1]), strict=True)
    choices = tuple(choose(Scores(*part)) for part in parts)
    right = np.array([[c == q.answer for c in choice] for choice, q in zip(choices, questions, strict=True)])
    plain, normalised = right.mean(axis=0)
    return Ranking(float(plain), float(normalised), choices, scores.cut)


def _best(scores: np.ndarray) -> int:
    return -1 if np.all(np.isnan(scores)) else int(np.nanargmax(scores))
