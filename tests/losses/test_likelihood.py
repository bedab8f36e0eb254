# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and entropies in chunks are those of whole logits, and so are their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.losses import segment_sums, token_log_probs, token_log_probs_and_entropy
from tests.jaxprs import products

ROWS, LENGTH, WIDTH, VOCAB = 2, 7, 5, 11
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(ROWS, LENGTH, WIDTH)), jnp.float32)
WEIGHTS = {"w": jnp.asarray(RNG.normal(size=(WIDTH, VOCAB)), jnp.float32), "number": jnp.int32(3)}
TARGETS = jnp.asarray(RNG.integers(0, VOCAB, (ROWS, LENGTH)), jnp.int32)
WORTH = jnp.asarray(RNG.normal(size=(2, ROWS, LENGTH)), jnp.float32)


def contract(hidden, weights):
    return jnp.einsum("bsd,dv->bsv", hidden, weights["w"])


def whole(w, hidden, temperature):
    logs = jax.nn.log_softmax(jnp.einsum("bsd,dv->bsv", hidden, w) / temperature, axis=-1)
    chosen = jnp.take_along_axis(logs, TARGETS[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def chunked(w, hidden, temperature, chunk):
    return token_log_probs_and_entropy(contract, {**WEIGHTS, "w": w}, hidden, TARGETS, temperature, chunk)


def weighed(found):
    return jnp.sum(found[0] * WORTH[0]) + jnp.sum(found[1] * WORTH[1])


@functools.cache
def wanted(temperature):
    both = lambda w, hidden: (weighed(found := whole(w, hidden, temperature)), found)  # noqa: E731
    return jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True))(WEIGHTS["w"], HIDDEN)


@pytest.mark.parametrize("temperature, chunk", [(1.0, 2048), (0.7, 4), (0.7, 1)])
def test_values_and_gradients_are_those_of_whole_logits(temperature, chunk):
    """Of a head that is trained, and of one that is frozen, whose gradient is made in the forward pass."""
    (_, values), (d_w, d_hidden) = wanted(temperature)

    def both(w, hidden):
        found = chunked(w, hidden, temperature, chunk)
        return weighed(found), found

    (_, found), (one, other) = jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True))(WEIGHTS["w"], HIDDEN)
    np.testing.assert_allclose(found[0], values[0], atol=1e-5)
    np.testing.assert_allclose(found[1], values[1], atol=1e-5)
    np.testing.assert_allclose(one, d_w, atol=2e-5)
    np.testing.assert_allclose(other, d_hidden, atol=2e-5)
    frozen = jax.jit(jax.grad(lambda hidden: both(WEIGHTS["w"], hidden)[0]))(HIDDEN)
    np.testing.assert_allclose(frozen, d_hidden, atol=2e-5)
    assert np.linalg.norm(d_w) > 0.1 and np.linalg.norm(d_hidden) > 0.1


def test_one_of_the_two_alone():
    """What nobody differentiates costs nothing and adds nothing."""
    (_, values), _ = wanted(0.7)
    only = jax.jit(lambda hidden: token_log_probs(contract, WEIGHTS, hidden, TARGETS, 0.7, 4))
    np.testing.assert_allclose(only(HIDDEN), values[0], atol=1e-5)

    def part(place, chunk):
        def value(w, hidden):
            return jnp.sum((whole(w, hidden, 0.7) if chunk is None else chunked(w, hidden, 0.7, chunk))[place] ** 2)

        return jax.jit(jax.grad(value, (0, 1)))(WEIGHTS["w"], HIDDEN)

    for place in (0, 1):
        for one, other in zip(part(place, 4), part(place, None), strict=True):
            np.testing.assert_allclose(one, other, atol=3e-5)


def test_a_token_that_cannot_come_adds_no_entropy():
    def closed(hidden, weights):
        logits = contract(hidden, weights)
        return jnp.where(jnp.arange(VOCAB)[None, None] < 2, logits, -jnp.inf)

    targets = jnp.zeros_like(TARGETS)
    value = lambda hidden: sum(map(jnp.sum, token_log_probs_and_entropy(closed, WEIGHTS, hidden, targets)))  # noqa: E731
    found, gradient = jax.jit(jax.value_and_grad(value))(HIDDEN)
    assert np.isfinite(found) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0.01
    _, entropy = token_log_probs_and_entropy(closed, WEIGHTS, HIDDEN, targets)
    assert 0 < float(entropy.min()) and float(entropy.max()) <= np.log(2) + 1e-6


def test_logits_of_all_tokens_never_exist():
    def value(hidden):
        return jnp.sum(chunked(WEIGHTS["w"], hidden, 1.0, 2)[0])

    shapes = products(jax.value_and_grad(value), HIDDEN)
    assert shapes and max(map(np.prod, shapes)) <= ROWS * 2 * VOCAB


def test_log_probabilities_of_sixteen_bits_are_float32():
    half = {**WEIGHTS, "w": WEIGHTS["w"].astype(jnp.bfloat16)}
    found = token_log_probs(contract, half, HIDDEN.astype(jnp.bfloat16), TARGETS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted(1.0)[0][1][0], atol=0.1)


def test_an_answers_likelihood_is_the_sum_over_its_segment():
    (_, (log_probs, _)), _ = wanted(1.0)
    segments = jnp.asarray([[1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 0, 0, 0]], jnp.int32)
    found = segment_sums(log_probs, segments, 3)
    rows = np.asarray(log_probs, np.float64)
    want = [[rows[0, :2].sum(), rows[0, 2:5].sum(), rows[0, 5]], [rows[1, :4].sum(), 0, 0]]
    np.testing.assert_allclose(found, want, rtol=1e-5)
