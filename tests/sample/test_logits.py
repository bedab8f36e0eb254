# SPDX-License-Identifier: Apache-2.0
"""The distribution that tokens are drawn from, against the same in plain NumPy; and that draws follow it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxpost.faults import Fault
from jaxpost.sample.logits import Sampling, distribution, draw


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max()
    with np.errstate(divide="ignore"):
        return x - np.log(np.exp(x).sum())


def oracle(logits, temperature, top_k, top_p):
    """Log-probabilities of one row, one token at a time; and how near a token came to being on the other side of p."""
    scaled = logits.astype(np.float64) / temperature
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    kept = set(order)
    if 0 < top_k < len(scaled):
        kept = {i for i in kept if scaled[i] >= scaled[order[top_k - 1]]}
    p = np.exp(log_softmax(np.where([i in kept for i in range(len(scaled))], scaled, -np.inf)))
    near = np.inf
    if top_p < 1:
        mass, nucleus = 0.0, []
        for i in order:
            near = min(near, abs(mass - top_p))
            if mass >= top_p:
                break
            nucleus.append(i)
            mass += p[i]
        kept = {i for i in kept if scaled[i] >= scaled[nucleus[-1]]}
    return log_softmax(np.where([i in kept for i in range(len(scaled))], scaled, -np.inf)), near


# Quarters over powers of two, so that equal logits stay equal and many are.
LOGITS = st.lists(
    st.one_of(st.integers(-24, 24).map(lambda n: n / 4), st.just(-np.inf)), min_size=6, max_size=6
).filter(lambda row: max(row) > -np.inf)


@given(LOGITS, st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.integers(0, 8), st.floats(0.01, 1.0))
@settings(max_examples=200)
def test_it_is_what_it_says(row, temperature, top_k, top_p):
    logits = np.array(row, np.float32)
    wanted, near = oracle(logits, temperature, top_k, top_p)
    assume(near > 1e-5)
    found = np.asarray(distribution(jnp.asarray(logits), Sampling(temperature=temperature, top_k=top_k, top_p=top_p)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(wanted))
    kept = np.isfinite(wanted)
    np.testing.assert_allclose(found[kept], wanted[kept], atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, rtol=1e-5)


@given(LOGITS, st.floats(0.01, 0.99))
@settings(max_examples=50)
def test_the_nucleus_is_the_smallest_that_reaches_p(row, top_p):
    """Said without an order: it weighs at least p, and without its least likely tokens it would not."""
    logits = np.array(row, np.float32)
    p = np.exp(log_softmax(logits))
    kept = np.isfinite(np.asarray(distribution(jnp.asarray(logits), Sampling(temperature=1.0, top_p=top_p))))
    assert p[kept].sum() >= top_p - 1e-5 and p[kept].min() >= p[~kept].max(initial=0.0)
    assert p[kept & (p > p[kept].min() * (1 + 1e-9))].sum() < top_p + 1e-5


@given(st.lists(LOGITS, min_size=1, max_size=3))
@settings(max_examples=30)
def test_greedy_takes_the_first_of_the_likeliest(rows):
    logits = np.array(rows, np.float32)
    found = np.asarray(distribution(jnp.asarray(logits), Sampling(temperature=0.0, top_k=2, top_p=0.3)))
    wanted = np.where(np.arange(6) == logits.argmax(axis=1)[:, None], 0.0, -np.inf)
    np.testing.assert_array_equal(found, wanted)


def test_ties_stay_together():
    logits = jnp.array([3.0, 2.0, 2.0, 2.0, 1.0])
    assert np.isfinite(distribution(logits, Sampling(temperature=1.0, top_k=2))).tolist() == [True] * 4 + [False]
    assert np.isfinite(distribution(logits, Sampling(temperature=1.0, top_p=0.6))).tolist() == [True] * 4 + [False]
    assert np.isfinite(distribution(logits, Sampling(temperature=1.0, top_k=1))).tolist() == [True] + [False] * 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_widened_first(dtype):
    logits = jnp.array([1.0, 2.0, -3.0], dtype)
    found = distribution(logits, Sampling(temperature=0.7))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, log_softmax(np.array([1.0, 2.0, -3.0]) / 0.7), atol=1e-6)


compiled = jax.jit(distribution, static_argnums=1)


@given(st.integers(0, 999), st.sampled_from([1e-6, 0.05, 0.5, 0.9, 0.999999]))
@settings(max_examples=30)
def test_something_is_always_left(seed, top_p):
    """For real-valued logits of a large vocabulary, compiled: however p falls between rounded sums."""
    logits = 3 * jax.random.normal(jax.random.key(seed), (4, 501))
    found = np.asarray(compiled(logits, Sampling(temperature=0.9, top_p=top_p)))
    assert np.isfinite(found).any(axis=1).all() and not np.isnan(found).any()
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-4)
    assert np.isfinite(found[np.arange(4), np.asarray(logits).argmax(axis=1)]).all()


@pytest.mark.parametrize(
    "wrong", [{"max_new": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": -0.5}]
)
def test_what_cannot_be_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(Fault, match=rf"^{name} is {value}; it must be a"):
        Sampling(**wrong)


# --- draws

COUNT = 20_000


@pytest.fixture(scope="module")
def drawn():
    """Many draws from three rows of a tiny vocabulary, one of which has only one token left."""
    log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.2] * 5]))
    keys = jax.random.split(jax.random.key(0), (COUNT, 3))
    tokens, scores = jax.jit(jax.vmap(draw, (0, None)))(keys, log_probs)
    return np.asarray(log_probs), np.asarray(tokens), np.asarray(scores)


def test_draws_have_the_stated_log_probabilities(drawn):
    log_probs, tokens, scores = drawn
    np.testing.assert_array_equal(scores, log_probs[np.arange(3), tokens])
    assert np.isfinite(scores).all(), "nothing is drawn that cannot be"


def test_draws_are_as_frequent_as_they_are_likely(drawn):
    log_probs, tokens, _ = drawn
    for row, freedom in ((0, 3), (2, 4)):
        wanted = COUNT * np.exp(log_probs[row])
        found = np.bincount(tokens[:, row], minlength=5)
        possible = wanted > 0
        statistic = ((found - wanted)[possible] ** 2 / wanted[possible]).sum()
        assert statistic < {3: 21.1, 4: 23.5}[freedom], "beyond the chi-square distribution's 99.99 %"
        assert not found[~possible].any()
    assert (tokens[:, 1] == 2).all()


def test_rows_draw_by_their_own_keys(drawn):
    """Not the same luck in every row, and the same luck for the same key."""
    uniform = jnp.log(jnp.full((2, 50), 0.02))
    one, other = jax.random.key(1), jax.random.key(2)
    first, _ = draw(jnp.stack([one, other]), uniform)
    second, _ = draw(jnp.stack([other, one]), uniform)
    assert first.tolist() == second.tolist()[::-1] and first[0] != first[1]
    _, tokens, _ = drawn
    assert abs(np.corrcoef(tokens[:, 0], tokens[:, 2])[0, 1]) < 0.03
