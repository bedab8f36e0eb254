# SPDX-License-Identifier: Apache-2.0
"""Judging pairs: it does not matter which answer stands first, and a judge that says nothing says nothing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data.principles import Principle, Wording
from jaxpost.data.tokenizers import SentencePieceTokenizer, prompt_ids, tokenise
from jaxpost.evals import judge
from jaxpost.evals.judge import Compared, Opinion
from jaxpost.evals.rank import Scores
from jaxpost.recipes.base import BUILT_IN

PRINCIPLES = tuple(Principle(name, judge=f"Which is {name}?") for name in ("kind", "true", "short"))
WORDS = Wording("here", "verdict", (("", "{prompt}|{answer_a}|{answer_b}|{question}\n"),))
PAIRS = [Compared("Q", f"one {i}", f"other {i}", number=i) for i in range(20)]


def opinions(asked, pairs, better, bias=0.0):
    """Of a judge that likes an answer by the logit `better(answer)`, and what stands first by `bias`."""
    found = []
    for look in asked:
        places = look.places(pairs[look.pair])
        logit = better(places["answer_a"]) - better(places["answer_b"]) + bias
        found.append(Opinion(1 / (1 + math.exp(-logit))))
    return found


def judged(pairs, better, orders="average", bias=0.0, each=2, tie=0.0):
    asked = judge.looks(pairs, PRINCIPLES, 7, each, orders)
    said = opinions(asked, pairs, better, bias)
    return judge.verdicts(len(pairs), asked, said, orders, tie), asked, said


def length(text):
    return 0.3 * (len(text) - 6) + 0.1 * int(text.split()[-1])


def test_every_pair_is_shown_both_ways_by_as_many_principles():
    asked = judge.looks(PAIRS, PRINCIPLES, 7, 2, "agree")
    assert len(asked) == 20 * 2 * 2
    for i in range(20):
        own = [(look.principle.name, look.swapped) for look in asked if look.pair == i]
        assert len({name for name, _ in own}) == 2 and len(set(own)) == 4
    words = judge.questions(PAIRS, asked, WORDS)
    assert words[0].prompt == f"Q|one 0|other 0|{asked[0].principle.judge}\n"
    assert words[1].prompt == f"Q|other 0|one 0|{asked[0].principle.judge}\n"
    once = judge.looks(PAIRS, PRINCIPLES, 7, 1, "one")
    assert len(once) == 20 and {look.swapped for look in once} == {False, True}


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=6), st.floats(-5, 5))
def test_swapped_answers_swap_the_verdict(logits, bias):
    """The law that makes both orders worth their price: an answer's place has no part in what becomes of it."""
    pairs = [Compared("Q", f"one {i}", f"other {i}", number=i) for i in range(len(logits))]
    turned = [Compared("Q", pair.other, pair.one, number=pair.number) for pair in pairs]
    worth = {f"one {i}": one for i, (one, _) in enumerate(logits)} | {
        f"other {i}": other for i, (_, other) in enumerate(logits)
    }
    for orders in ("average", "agree"):
        straight, *_ = judged(pairs, worth.__getitem__, orders, bias, tie=1e-6)
        round_, *_ = judged(turned, worth.__getitem__, orders, bias, tie=1e-6)
        for one, other, (a, b) in zip(straight, round_, logits, strict=True):
            assert one.probability == pytest.approx(1 - other.probability, abs=1e-9) and one.reason == other.reason
            if one.reason == "judged":
                assert (one.probability > 0.5) == (a > b)


def test_a_judge_that_looks_at_places_alone_has_bias_and_no_opinion():
    found, asked, said = judged(PAIRS, lambda text: 0.0, "agree", bias=2.0)
    assert {one.reason for one in found} == {"tie"} and all(one.probability == pytest.approx(0.5) for one in found)
    told = judge.statistics(said, found)
    assert told["position bias"] == pytest.approx(1 / (1 + math.exp(-2)) - 0.5, abs=1e-4)
    assert told["agreement"] == 0 and told["ties"] == 1 and told["neither"] == 0
    assert told["pairs"] == 20 and told["questions"] == len(asked) == 80


def test_a_judge_without_bias_agrees_with_itself():
    found, _, said = judged(PAIRS, length)
    told = judge.statistics(said, found)
    assert told["position bias"] == pytest.approx(0, abs=1e-9) and told["agreement"] == 1
    assert all(one.probability < 0.5 and one.shown_first == pytest.approx(one.shown_second) for one in found)
    close, *_ = judged(PAIRS, length, tie=0.15)  # other is longer by two letters: 0.354 against 0.646
    assert {one.reason for one in close} == {"tie"}


def test_likelihoods_become_opinions():
    scores = Scores(np.log([0.6, 0.2, 1e-5, 1e-5, 0.3, 0.7]), np.ones(6, np.int64))
    sure, faint, other = judge.by_likelihood(scores, least=0.01)
    assert sure == (pytest.approx(0.75), pytest.approx(0.8)) and other.first == pytest.approx(0.3)
    assert math.isnan(faint.first) and faint.mass == pytest.approx(2e-5)
    lost, far = judge.by_likelihood(Scores(np.array([np.nan, -1.0, -2000.0, -1.0]), np.ones(4, np.int64)))
    assert math.isnan(lost.first) and lost.mass == 0 and far.first < 1e-300


@pytest.mark.parametrize(
    "text, first",
    [
        ("A", 1.0),
        ("B.", 0.0),
        ("(B)", 0.0),
        ("A is polite, and B is not. The better one: A", 1.0),
        ("I choose [[B]], though A is shorter.", 0.0),
        ("Answer B's tone is better. **B**", 0.0),
        ("Both are fine.", None),
        ("a", None),
        ("", None),
        ("BAD", None),
    ],
)
def test_written_verdicts_are_read(text, first):
    (opinion,) = judge.by_words([text], ("A", "B"))
    assert math.isnan(opinion.first) if first is None else opinion.first == first


def test_a_judge_that_answers_neither_is_counted():
    asked = judge.looks(PAIRS[:3], PRINCIPLES, 0, 1, "average")
    said = judge.by_words(["A", "B", "A", "well", "hm", "hm"], ("A", "B"))
    found = judge.verdicts(3, asked, said, "average")
    assert [one.reason for one in found] == ["judged", "neither", "neither"]
    assert found[0].probability == 1 and math.isnan(found[1].probability) and found[1].shown_first == 1
    told = judge.statistics(said, found)
    assert told["neither"] == pytest.approx(2 / 3, abs=1e-4) and told["agreement"] == 1
    # By another principle it did answer: that one counts.
    asked = judge.looks(PAIRS[:1], PRINCIPLES, 0, 2, "average")
    (one,) = judge.verdicts(1, asked, judge.by_words(["hm", "A", "B", "A"], ("A", "B")), "average")
    assert one.reason == "judged" and one.probability == 0


def test_letters_stand_behind_the_prompt_as_in_training():
    tokenizer = SentencePieceTokenizer.load(BUILT_IN["nano"] / "tokenizer.model")
    prompt = "Which answer is kind?\n"
    (ids, a), (_, b) = judge.choices(tokenizer, prompt, "", ("A", "B"))
    assert list(ids) == prompt_ids(tokenizer, prompt) and tokenizer.decode(a) == "A" and tokenizer.decode(b) == "B"
    (begun, a), (other, b) = judge.choices(tokenizer, prompt, "It is ", ("A", "B"))
    assert begun == other and tokenizer.decode([*begun, *b]).endswith("It is B") and tokenizer.decode(a).strip() == "A"


def test_letters_behind_a_conversation():
    """The assistant's turn begins as in training, whatever stands before it."""
    tokenizer = SentencePieceTokenizer.load(BUILT_IN["nano"] / "tokenizer.model")
    turns = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Which?"}]
    prompt = tokenizer.template.prompt(turns)
    trained = tokenise(tokenizer, tokenizer.template.parts([*turns, {"role": "assistant", "content": "B"}]))
    _, (ids, letter) = judge.choices(tokenizer, prompt, "", ("A", "B"))
    assert [*ids, *letter, tokenizer.eos] == trained.ids.tolist() and trained.trained.sum() == len(letter) + 1
