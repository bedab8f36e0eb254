# SPDX-License-Identifier: Apache-2.0
"""Scores of answers: what is no number never becomes one, and a reward model reads the answer's last token."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params
from jaxpost.evals.rewards import Answered
from jaxpost.faults import Fault
from jaxpost.models import decoder
from jaxpost.recipes.rollouts.rollout import rewarded
from jaxpost.recipes.rollouts.scoring import Function, RewardModel, Scoring, describe, model_scores
from tests.recipes.rolled import CONFIG, LENGTHS, METHODS, ROLLOUT, base, drawn, scattered, wider

ANSWERS = [Answered("?", text, {"answer": "yes"}, len(text.split()), "end") for text in ("yes", "no", "yes no", "")]


def scoring(tmp_path, body, weight=1.0, unscored="leave_out", others=()):
    """By a user's function, which finds `text` and `math` at hand."""
    path = tmp_path / f"mine{len(list(tmp_path.iterdir()))}.py"  # a file is executed once
    path.write_text(f"import math\n\ndef own(answered):\n    text = answered.text\n    {body}\n")
    return Scoring((Function(f"{path}:own", weight), *others), unscored)


def test_scores_of_several_sources(tmp_path):
    given = scoring(tmp_path, "return len(text)", 0.5, others=(Function("exact", 2.0), Function("length:1", -1.0)))
    found = given.judged(ANSWERS, {})
    np.testing.assert_array_equal(found, [[3, 1, 1], [2, 0, 1], [6, 0, 0], [0, 0, 0]])
    assert given.names == ("own", "exact", "length") and given.weights.tolist() == [0.5, 2.0, -1.0]
    assert describe(found, given.names) == {"own": 2.75, "exact": 0.25, "length": 0.5}
    assert given.counts == {"scored": 4, "without a score": 0, "no numbers": 0}


ODD = {
    "None": ("return None if text == 'no' else 1", 0),
    "NaN": ("return math.nan if text == 'no' else 1", 1),
    "infinity": ("return -math.inf if text == 'no' else 1", 1),
    "more than float32 holds": ("return 1e300 if text == 'no' else 1", 1),
    "more than any float": ("return 10**400 if text == 'no' else 1", 1),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_number_is_left_out_and_counted(tmp_path, kind):
    body, wrong = ODD[kind]
    alone = scoring(tmp_path, body)
    found = alone.judged(ANSWERS, {})
    np.testing.assert_array_equal(found[:, 0], [1, math.nan, 1, 1])
    assert alone.counts == {"scored": 4, "without a score": 1, "no numbers": wrong}
    beside = scoring(tmp_path, body, others=(Function("exact"),))
    np.testing.assert_array_equal(beside.judged(ANSWERS, {})[1], [math.nan, 0])
    assert beside.counts["without a score"] == 0, "another one applies"
    strict = scoring(tmp_path, body, unscored="error")
    with pytest.raises(Fault, match=r"no reward \(own\) has a number for the answer 'no'; mend the function, or set"):
        strict.judged(ANSWERS, {})


@pytest.mark.parametrize("body", ["return text", "return '3'", "return [1, 2]", "return {}"])
def test_what_is_none_at_all_stops_the_run(tmp_path, body):
    with pytest.raises(Fault, match="the reward own gave .* for an answer; it must give a number or None"):
        scoring(tmp_path, body).judged(ANSWERS, {})


def test_truth_and_numpy_are_numbers(tmp_path):
    np.testing.assert_array_equal(scoring(tmp_path, "return text == 'yes'").judged(ANSWERS, {})[:, 0], [1, 0, 0, 0])
    given = scoring(tmp_path, "import numpy; return numpy.float32(len(text))")
    np.testing.assert_array_equal(given.judged(ANSWERS, {})[:, 0], [3, 2, 6, 0])


def test_what_breaks_in_a_users_function_is_said_with_its_line(tmp_path):
    with pytest.raises(Fault, match=r"mine0.py, line 5 in own: ZeroDivisionError: division by zero"):
        scoring(tmp_path, "return 1 / 0").judged(ANSWERS, {})


def test_names_and_sources(tmp_path):
    with pytest.raises(Fault, match="rewards is empty: name what answers are rewarded for"):
        Scoring(())
    with pytest.raises(Fault, match="two rewards are called 'pattern'; give them names"):
        Scoring((Function("pattern:a"), Function("pattern:b")))
    both = Scoring((Function("pattern:a"), Function("pattern:b", name="b"), RewardModel("runs/one/")))
    assert both.names == ("pattern", "b", "one") and list(both.models) == ["one"]
    with pytest.raises(Fault, match="no reward is called 'exakt' .*did you mean exact"):
        Scoring((Function("exakt"),))
    with pytest.raises(Fault, match="absent.py: no such file"):
        Scoring((Function(f"{tmp_path}/absent.py:own"),))


def test_a_models_scores_stand_in_its_column():
    both = Scoring((Function("exact"), RewardModel("runs/one", 0.5)))
    found = both.judged(ANSWERS, {"one": jnp.array([0.5, jnp.nan, jnp.inf, 2.0])})
    np.testing.assert_array_equal(found, [[1, 0.5], [0, math.nan], [0, math.nan], [0, 2]])
    assert both.counts["no numbers"] == 2


def test_a_reward_model_reads_the_answers_last_token():
    """The end token is read if there is one; what stands behind it, and how much room there is, matters not."""
    _, fixed = delta.partition(params.init(METHODS["shared"](decoder.specs(CONFIG)), jax.random.key(1)))
    judge = delta.bind(base(), delta.combine(jax.tree.map(jnp.asarray, scattered("shared")), fixed))
    batch = drawn(rewards=np.zeros(8, np.float32))
    found = jax.jit(lambda batch: model_scores(CONFIG, judge, batch))
    scores = np.asarray(found(batch))
    places = batch["start"] + np.array(LENGTHS)
    tokens = np.where(np.arange(ROLLOUT.length)[None] > places[:, None], 7, batch["tokens"])
    other = {**batch, "tokens": tokens.astype(np.int32)}
    np.testing.assert_allclose(found(other), scores, atol=1e-6, err_msg="padding")
    tokens[np.arange(8), places] = 9
    assert (np.abs(np.asarray(found({**other, "tokens": tokens.astype(np.int32)})) - scores) > 1e-4).all()
    shorter = {**batch, "mask": batch["mask"] * (np.arange(6)[None] < 1)}
    moved = np.abs(np.asarray(found(shorter)) - scores) > 1e-4
    np.testing.assert_array_equal(moved, np.array(LENGTHS) > 1)
    wide = wider(batch, replace(ROLLOUT, prompt_tokens=7, answer_tokens=9))
    np.testing.assert_allclose(found(wide), scores, atol=1e-5)


# --- rewards of answers


def test_several_sources_are_weighed_into_one_reward():
    batch = drawn()
    scores = np.array([[1, 2], [np.nan, 2], [1, np.nan], [np.nan, np.nan]] * 2, np.float32)
    found = rewarded(batch, scores, np.array([1.0, 0.5], np.float32), ROLLOUT)
    np.testing.assert_array_equal(found["reward"], [2, 1, 1, np.nan] * 2)
    np.testing.assert_array_equal(found["mask"].any(axis=1), [True, True, True, False] * 2 & batch["mask"].any(axis=1))


def test_answers_that_did_not_end_are_punished_or_teach_nothing():
    batch = drawn(rewards=np.ones(8, np.float32))
    scores, one, cut = np.ones((8, 1), np.float32), np.ones(1, np.float32), np.array(LENGTHS) == 6
    np.testing.assert_array_equal(batch["ended"] == 0, cut)
    assert cut.sum() == 2
    found = rewarded(batch, scores, one, replace(ROLLOUT, unended=-0.25))
    np.testing.assert_array_equal(found["reward"], np.where(cut, 0.75, 1.0))
    np.testing.assert_array_equal(found["mask"], batch["mask"])
    found = rewarded(batch, scores, one, replace(ROLLOUT, mask_unended=True))
    np.testing.assert_array_equal(found["mask"].any(axis=1), ~cut)
    np.testing.assert_array_equal(found["reward"], 1.0)
