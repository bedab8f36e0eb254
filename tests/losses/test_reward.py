# SPDX-License-Identifier: Apache-2.0
"""Laws of the reward model's losses: rankings that count once, ties that are probabilities, absent answers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import losses
from jaxpost.faults import Fault

law = settings(max_examples=10, derandomize=True, deadline=None)
TIES = ("rao_kupper", "davidson")


@jax.jit
def of_pairs(first, second, tie_rate, share):
    """Losses by name, and the gradients of their sums in `first`."""

    def made(first):
        yes, no = jnp.ones(first.shape, bool), jnp.zeros(first.shape, bool)
        found = {"plain": losses.bradley_terry(first, second), "back": losses.bradley_terry(second, first)}
        found["agreed"] = losses.bradley_terry(first, second, agreement=share)
        found["margin"] = losses.bradley_terry(first, second, margin=share, centring=0.01)
        for kind in TIES:
            for name, pair in (
                ("", (first, second, no)),
                (" back", (second, first, no)),
                (" tie", (first, second, yes)),
            ):
                found[kind + name] = losses.bradley_terry_ties(*pair, tie_rate=tie_rate, kind=kind)
        found |= {kind: losses.pointwise(first, second, kind=kind) for kind in ("squared", "huber")}
        logits = jnp.stack([second, first], axis=-1)
        found |= {"classes": losses.two_class(logits, yes)}
        return found | {k: losses.two_class_reward(logits, kind=k) for k in ("logit", "log_odds", "probability")}

    found = made(first)
    return found, {name: jax.grad(lambda x, name=name: jnp.sum(made(x)[name]))(first) for name in ("margin", *TIES)}


@law
@given(st.integers(0, 2**16), st.floats(0.01, 0.9))
def test_pairs(seed, tie_rate):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0, 2, (2, 16)).astype(np.float32)
    share = rng.uniform(0.5, 1, 16).astype(np.float32)
    found, gradients = jax.device_get(of_pairs(first, second, np.float32(tie_rate), share))
    np.testing.assert_allclose(found["agreed"], share * found["plain"] + (1 - share) * found["back"], rtol=1e-5)
    np.testing.assert_allclose(found["classes"], found["plain"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["probability"], np.exp(-found["plain"]), rtol=1e-5)
    np.testing.assert_allclose(found["log_odds"], first - second, rtol=1e-5)
    assert np.all(found["margin"] >= found["plain"]) and np.all(found["huber"] <= found["squared"] / 2 + 1e-6)
    for kind in TIES:
        assert np.all(gradients[kind] < 0)
        each = [np.exp(-found[kind + way]) for way in ("", " back", " tie")]
        np.testing.assert_allclose(sum(each), 1, rtol=1e-4)


def test_ties_between_equals_are_as_frequent_as_was_said_and_none_are_bradley_terry():
    equal, rates = np.zeros(16, np.float32), np.ones(16, np.float32)
    found, _ = of_pairs(equal, equal, np.float32(0.3), rates)
    for kind in TIES:
        np.testing.assert_allclose(np.exp(-found[f"{kind} tie"]), 0.3, rtol=1e-5)
    apart = np.linspace(-3, 3, 16).astype(np.float32)
    found, _ = of_pairs(apart, equal, np.float32(1e-6), rates)
    for kind in TIES:
        np.testing.assert_allclose(found[kind], found["plain"], atol=1e-4)


def test_extreme_scores_stay_finite():
    first, second = np.array(list(itertools.product([-1e4, -1.0, 0.0, 1e4], repeat=2)), np.float32).T
    for rate in (1e-6, 0.999):
        found = of_pairs(first, second, np.float32(rate), np.full(16, 0.5, np.float32))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))


@jax.jit
def of_rankings(scores, ranks, mask):
    gradient = jax.grad(lambda x: jnp.sum(losses.rankings(x, ranks, mask, centring=0.01)))(scores)
    return losses.rankings(scores, ranks, mask), gradient, losses.ranked_pairs(ranks, mask)


@law
@given(st.integers(0, 2**16))
def test_a_prompt_counts_once_and_answers_that_are_not_there_not_at_all(seed):
    rng = np.random.default_rng(seed)
    scores, ranks = rng.normal(0, 2, (3, 4)).astype(np.float32), rng.integers(1, 4, (3, 4)).astype(np.int32)
    mask = rng.integers(0, 2, (3, 4)).astype(np.float32)
    mask[0], ranks[0] = 1, [1, 2, 3, 4]
    scores[mask == 0] = np.nan
    found, gradients, pairs = jax.device_get(of_rankings(scores, ranks, mask))
    assert pairs[0].sum() == 6 and np.all(np.isfinite(gradients)) and np.all(gradients[mask == 0] == 0)
    for i in range(3):
        told = [(a, b) for a in range(4) for b in range(4) if mask[i, a] and mask[i, b] and ranks[i, a] < ranks[i, b]]
        each = [np.logaddexp(0, scores[i, b] - scores[i, a]) for a, b in told]
        np.testing.assert_allclose(found[i], np.mean(each) if each else 0, rtol=1e-5)
        assert pairs[i].any() == bool(told)


X = jnp.zeros(2)
REFUSED = {
    "bradley_terry: agreement is 1.5": lambda: losses.bradley_terry(X, X, agreement=1.5),
    "ties: no kind 'raokupper'; did you mean rao_kupper": lambda: losses.bradley_terry_ties(
        X, X, X > 0, tie_rate=0.1, kind="raokupper"
    ),
    "tie_rate is 0; it must be more than 0 and less than 1": lambda: losses.bradley_terry_ties(
        X, X, X > 0, tie_rate=0.0
    ),
    "pointwise: no kind 'mse'; known: huber, squared": lambda: losses.pointwise(X, X, kind="mse"),
    "two_class_reward: no kind 'logits'; did you mean logit": lambda: losses.two_class_reward(X, kind="logits"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_meant_is_refused(words):
    with pytest.raises(Fault, match=words):
        REFUSED[words]()
