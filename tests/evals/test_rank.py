# SPDX-License-Identifier: Apache-2.0
"""Which option wins, with scores written down by the test."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.chat.template import BuiltIn
from jaxpost.data.tasks import Example
from jaxpost.data.tokenizers import Virtual, with_virtual
from jaxpost.evals.rank import Choice, Question, Scores, choose, question, rank
from jaxpost.faults import Fault


def scores(*pairs: tuple[float, int]) -> Scores:
    logprobs, counts = zip(*pairs, strict=True)
    return Scores(np.array(logprobs), np.array(counts))


@pytest.mark.parametrize(
    "given_scores, choice",
    [
        (scores((-3.0, 1), (-4.0, 2), (-9.0, 1)), Choice(0, 1)),  # the long one wins per token
        (scores((-2.0, 1), (-2.0, 1), (-2.0, 1)), Choice(0, 0)),  # ties: the first
        (scores((-5.0, 1), (-2.0, 1), (-2.0, 1)), Choice(1, 1)),
        (scores((np.nan, 1), (-7.0, 1)), Choice(1, 1)),
        (scores((np.nan, 1), (np.nan, 1)), Choice(-1, -1)),
        (scores((-np.inf, 1), (-7.0, 1)), Choice(1, 1)),
        (scores((0.0, 0), (-1.0, 1)), Choice(0, 0)),
    ],
)
def test_choice(given_scores, choice):
    assert choose(given_scores) == choice


class Tokenizer:
    """A letter is a token."""

    vocab_size, bos, eos, pad, ends, template, continues = 128, 1, 2, 0, (2,), BuiltIn(), True
    virtual = Virtual()

    def encode_offsets(self, text, after=""):
        return np.array([ord(c) for c in text], np.int32), np.array([(i, i + 1) for i in range(len(text))], np.int32)

    def encode_offsets_batch(self, texts, after):
        return [self.encode_offsets(text) for text in texts]

    def piece(self, token):
        return {1: "<s>", 2: "</s>"}[token]

    def encode(self, text):
        return self.encode_offsets(text)[0].tolist()

    def decode(self, ids):
        return "".join(map(chr, ids))

    def save(self, directory):
        raise NotImplementedError


def test_options_stand_behind_the_prompt_as_in_training():
    asked = question(Tokenizer(), Example("Q?\n", "no", options=("yes", "no")))
    prompt = [1, *map(ord, "Q?\n")]
    assert asked.pairs == ((prompt, [*map(ord, "yes"), 2]), (prompt, [*map(ord, "no"), 2]))
    assert asked.answer == 1


@pytest.mark.parametrize("place, at", [("before", 0), ("between", 4)])
def test_every_option_has_the_places_of_a_learned_prompt(place, at):
    asked = question(
        with_virtual(Tokenizer(), Virtual(2, place)),
        Example("Q?\n", "no", options=("yes", "no")),
    )
    prompt = [1, *map(ord, "Q?\n")]
    prompt[at:at] = [-1, -2]
    assert asked.pairs == ((prompt, [*map(ord, "yes"), 2]), (prompt, [*map(ord, "no"), 2]))


@pytest.mark.parametrize("options", [None, (), ("yes", "maybe")])
def test_a_target_outside_the_options_is_a_fault(options):
    with pytest.raises(Fault, match="task nli: .*'no'.*exact match or ROUGE"):
        question(Tokenizer(), Example("Q?\n", "no", options=options, task="nli"))


def test_accuracy_over_examples_of_unequal_numbers_of_options():
    asked = [Question((([1], [5]), ([1], [6, 7])), 1), Question((([1], [8]), ([1], [9]), ([1], [4])), 2)]
    calls = []

    def score(pairs):
        calls.append(list(pairs))
        return Scores(np.array([-1.0, -1.5, -3.0, -2.0, -1.0]), np.array([1, 2, 1, 1, 1]), cut=3)

    result = rank(asked, score)
    assert calls == [[pair for q in asked for pair in q.pairs]]
    assert result.choices == (Choice(0, 1), Choice(2, 2))
    assert (result.plain, result.normalised, result.cut) == (0.5, 1.0, 3)


def test_nothing_to_rank_is_a_fault():
    with pytest.raises(Fault, match="no example"):
        rank([], lambda pairs: Scores(np.zeros(0), np.zeros(0)))


@given(st.lists(st.tuples(st.floats(-50, 0), st.integers(1, 9)), min_size=1, max_size=6), st.floats(0.1, 5))
def test_a_common_shift_or_scale_changes_no_choice(options, factor):
    options = [(round(logprob, 3), count) for logprob, count in options]
    plain = choose(scores(*options)).plain
    assert choose(scores(*[(logprob * 2.0, count) for logprob, count in options])) == choose(scores(*options))
    assert choose(scores(*[(logprob - 0.5, count) for logprob, count in options])).plain == plain
