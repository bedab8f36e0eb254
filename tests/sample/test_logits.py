# SPDX-License-Identifier: Apache-2.0
"""The distribution that tokens are drawn from, against the same in plain NumPy; and that draws follow it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxpost.faults import Fault
from jaxpost.sample.logits import Sampling, distribution, draw, gumbels, scores


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


@functools.partial(jax.jit, static_argnums=2)
def many(keys, logits, count):
    """So many draws from each row, each from the next number of the row's key."""
    noise = gumbels(keys, jnp.zeros(len(logits), jnp.int32), count, logits.shape[-1])
    return jax.vmap(draw, (0, None))(noise, logits)


@pytest.fixture(scope="module")
def drawn():
    """Many draws from three rows of a tiny vocabulary, one of which has only one token left."""
    log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.2] * 5]))
    shift = jnp.array([[0.0], [1.0], [-40.0]])
    tokens, found = many(jax.random.split(jax.random.key(0), 3), log_probs + shift, COUNT)
    return np.asarray(log_probs), np.asarray(tokens), np.asarray(found)


def test_draws_have_the_stated_log_probabilities(drawn):
    """However the scores are shifted."""
    log_probs, tokens, found = drawn
    np.testing.assert_allclose(found, log_probs[np.arange(3), tokens], atol=1e-5)
    assert np.isfinite(found).all(), "nothing is drawn that cannot be"


def chi_square(tokens, log_probs):
    """How far off the draws are, in standard deviations of what it would be by chance. Rare tokens count together."""
    wanted = COUNT * np.exp(log_probs.astype(np.float64))
    found = np.bincount(tokens, minlength=len(wanted))
    assert not found[wanted == 0].any()
    often = wanted >= 5
    wanted = np.append(wanted[often], wanted[~often].sum())
    found = np.append(found[often], found[~often].sum())
    used = wanted > 1
    statistic = ((found - wanted)[used] ** 2 / wanted[used]).sum()
    return (statistic - (used.sum() - 1)) / np.sqrt(2 * max(used.sum() - 1, 1))


def test_draws_are_as_frequent_as_they_are_likely(drawn):
    log_probs, tokens, _ = drawn
    assert max(chi_square(tokens[:, row], log_probs[row]) for row in (0, 2)) < 5
    assert (tokens[:, 1] == 2).all()


@pytest.mark.parametrize("vocab", [1, 1000])
def test_draws_of_larger_vocabularies_are_too(vocab):
    """Whether or not the blocks that a token is drawn from fill up; peaked, flat, and with a nucleus cut out."""
    logits = jnp.array([[3.0], [0.3], [2.0]]) * jax.random.normal(jax.random.key(vocab), (3, vocab))
    cut = scores(logits, Sampling(temperature=1.0, top_p=0.8))
    rows = jnp.concatenate([logits[:2], cut[2:]])
    tokens, found = (np.asarray(x) for x in many(jax.random.split(jax.random.key(5), 3), rows, COUNT))
    for row in range(3):
        exact = log_softmax(np.asarray(rows[row]))
        np.testing.assert_allclose(found[:, row], exact[tokens[:, row]], atol=1e-4)
        assert abs(chi_square(tokens[:, row], exact)) < 5


def test_rows_draw_by_their_own_keys_and_numbers(drawn):
    """Not the same luck in every row or for every token, and the same for the same key and number."""
    uniform = jnp.log(jnp.full((2, 50), 0.02))
    one, other = jax.random.key(1), jax.random.key(2)
    first, second = (many(jnp.stack(keys), uniform, 3)[0] for keys in ([one, other], [other, one]))
    assert first.tolist() == second[:, ::-1].tolist() and (first[:, 0] != first[:, 1]).any()
    later = gumbels(jnp.stack([one, other]), jnp.array([7, 2], jnp.int32), 2, 50)
    whole = gumbels(jnp.stack([one, other]), jnp.array([0, 0], jnp.int32), 9, 50)
    np.testing.assert_array_equal(later, jnp.stack([whole[7:9, 0], whole[2:4, 1]], axis=1))
    assert np.unique(whole[:, :, 0]).size == 18, "every token has luck of its own"
    _, tokens, _ = drawn
    assert abs(np.corrcoef(tokens[:, 0], tokens[:, 2])[0, 1]) < 0.03
