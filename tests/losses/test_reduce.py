# SPDX-License-Identifier: Apache-2.0
"""The one reduction: what a mask hides, and parts that add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.losses import masked_mean


def test_by_hand():
    x, mask = jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.0, 0.5])
    np.testing.assert_allclose(masked_mean(x, mask), 3.0 / 1.5)
    np.testing.assert_allclose(masked_mean(x, mask, 6.0), 0.5)
    np.testing.assert_allclose(masked_mean(x, mask, jnp.array(6.0)), 0.5)


def test_nothing_to_average_is_zero():
    value, gradient = jax.value_and_grad(masked_mean)(jnp.ones(3), jnp.zeros(3))
    assert value == 0 and not np.any(gradient)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(0, 2**16), st.lists(st.integers(0, 12), max_size=3))
def test_parts_add_up_however_they_are_cut(seed, cuts):
    rng = np.random.default_rng(seed)
    x, mask = rng.normal(size=12).astype(np.float32), rng.integers(0, 2, 12).astype(np.float32)
    denominator = float(max(1, mask.sum()))
    edges = [0, *sorted(cuts), 12]
    parts = [
        masked_mean(jnp.asarray(x[a:b]), jnp.asarray(mask[a:b]), denominator)
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    np.testing.assert_allclose(sum(parts), masked_mean(jnp.asarray(x), jnp.asarray(mask)), atol=1e-5)
    order = rng.permutation(12)
    shuffled = masked_mean(jnp.asarray(x[order]), jnp.asarray(mask[order]))
    np.testing.assert_allclose(shuffled, masked_mean(jnp.asarray(x), jnp.asarray(mask)), atol=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_the_mask_hides_does_not_matter(broken):
    x, mask = jnp.array([1.0, broken, 3.0]), jnp.array([1.0, 0.0, 1.0])
    value, gradient = jax.value_and_grad(masked_mean)(x, mask)
    assert value == 2.0
    np.testing.assert_allclose(gradient, [0.5, 0.0, 0.5])


def test_what_it_does_not_hide_does():
    assert np.isnan(masked_mean(jnp.array([1.0, jnp.nan]), jnp.array([1.0, 1e-6])))


def test_sums_are_in_float32():
    ones = jnp.ones(5000, jnp.bfloat16)
    assert masked_mean(ones, ones) == 1.0 and masked_mean(ones, ones, 1.0) == 5000.0
    assert masked_mean(ones, ones).dtype == jnp.float32
