# SPDX-License-Identifier: Apache-2.0
"""Losses of one token against numbers computed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.losses import cross_entropy, z_loss

# softmax of logs is the normalised weights: 1, 2, 5 of 8.
LOGITS = jnp.log(jnp.array([1.0, 2.0, 5.0]))


@pytest.mark.parametrize("target, wanted", [(0, math.log(8)), (1, math.log(4)), (2, math.log(1.6))])
def test_cross_entropy_by_hand(target, wanted):
    np.testing.assert_allclose(cross_entropy(LOGITS, jnp.array(target)), wanted, rtol=1e-6)
    shifted = cross_entropy(LOGITS + 1000.0, jnp.array(target))
    np.testing.assert_allclose(shifted, wanted, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_by_hand(smoothing):
    """q = 0.9 on the target and 0.1 spread over all three, the target included."""
    losses = np.log([8.0, 4.0, 1.6])
    wanted = (1 - smoothing) * losses[1] + smoothing * losses.mean()
    np.testing.assert_allclose(cross_entropy(LOGITS, jnp.array(1), smoothing), wanted, rtol=1e-6)


def test_any_leading_axes_give_one_loss_each():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    targets = jnp.array([[0, 1, 2], [3, 4, 0]])
    whole = cross_entropy(logits, targets)
    assert whole.shape == (2, 3)
    by_vmap = jax.vmap(jax.vmap(cross_entropy))(logits, targets)
    np.testing.assert_allclose(whole, by_vmap, rtol=1e-6)


def test_the_gradient_is_softmax_minus_target():
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.array(1)))(LOGITS)
    np.testing.assert_allclose(gradient, np.array([1, 2 - 8, 5]) / 8, atol=1e-6)
    smoothed = jax.grad(lambda x: cross_entropy(x, jnp.array(1), 0.3))(LOGITS)
    np.testing.assert_allclose(smoothed, np.array([1, 2, 5]) / 8 - np.array([0.1, 0.8, 0.1]), atol=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, lambda x, t: cross_entropy(x, t, 0.1), lambda x, t: z_loss(x)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_logits_stay_finite(loss, dtype, extreme):
    logits = jnp.array([extreme, 0.0, -extreme], dtype)
    for target in range(3):
        value, gradient = jax.value_and_grad(lambda x, t=target: loss(x, jnp.array(t)))(logits)
        assert value.dtype == jnp.float32 and gradient.dtype == dtype
        assert np.isfinite(value) and np.all(np.isfinite(gradient.astype(jnp.float32)))


def test_an_excluded_word_has_no_share():
    logits = jnp.array([0.0, 0.0, -jnp.inf])
    value, gradient = jax.value_and_grad(cross_entropy)(logits, jnp.array(0))
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.5, 0.5, 0.0], atol=1e-6)


def test_sixteen_bit_logits_are_summed_in_float32():
    logits = jnp.zeros(4096, jnp.bfloat16)
    np.testing.assert_allclose(cross_entropy(logits, jnp.array(7)), math.log(4096), rtol=1e-6)


def test_z_loss_by_hand():
    np.testing.assert_allclose(z_loss(LOGITS), math.log(8) ** 2, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(z_loss)(LOGITS), 2 * math.log(8) * np.array([1, 2, 5]) / 8, rtol=1e-5)
