# SPDX-License-Identifier: Apache-2.0
"""Losses of choosing a place, against numbers computed by hand and against each example by itself."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.losses import last_tokens, place_losses

ROWS = st.lists(st.lists(st.integers(1, 4), max_size=4).filter(lambda row: sum(row) <= 10), min_size=2, max_size=2)


def segments_of(row, total=10):
    return np.pad(np.repeat(np.arange(1, len(row) + 1), row), (0, total - sum(row))).astype(np.int32)


def test_by_hand():
    """Weights of 1, 2 and 5 of 8, and 1 and 3 of 4 beside them."""
    scores = jnp.log(jnp.array([[1.0, 2.0, 5.0, 1.0, 3.0, 7.0]]))
    losses = place_losses(scores, jnp.array([[1, 1, 1, 2, 2, 0]]))
    np.testing.assert_allclose(losses[0, :5], np.log([8, 4, 1.6, 4, 4 / 3]), rtol=1e-5)


@given(rows=ROWS, seed=st.integers(0, 99))
@settings(max_examples=25)
def test_each_example_is_by_itself(rows, seed):
    """Whatever stands beside it, padding too; and large scores are no trouble."""
    segments = np.stack([segments_of(row) for row in rows])
    scores = 100 * np.random.default_rng(seed).normal(size=(2, 10, 2)).astype(np.float32)
    losses = place_losses(jnp.asarray(scores), jnp.asarray(segments))
    ends = last_tokens(jnp.asarray(segments))
    for lengths, i in zip(rows, range(2), strict=True):
        stops = np.cumsum(lengths, dtype=int)
        assert np.flatnonzero(ends[i]).tolist() == (stops - 1).tolist()
        for length, stop in zip(lengths, stops, strict=True):
            own = scores[i, stop - length : stop].astype(np.float64)
            wanted = np.log(np.exp(own - own.max(0)).sum(0)) + own.max(0) - own
            np.testing.assert_allclose(losses[i, stop - length : stop], wanted, rtol=1e-5, atol=1e-4)


def test_the_gradient_is_softmax_minus_target_within_the_segment():
    scores, segments = jnp.log(jnp.array([[1.0, 2.0, 5.0, 9.0]])), jnp.array([[1, 1, 1, 2]])
    gradient = jax.grad(lambda x: place_losses(x, segments)[0, 1])(scores)
    np.testing.assert_allclose(gradient[0], np.array([1, 2 - 8, 5, 0]) / 8, atol=1e-6)
