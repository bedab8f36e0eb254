# SPDX-License-Identifier: Apache-2.0
"""What the KL estimators estimate, what their gradients are, controllers, and the critic's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.faults import Fault
from jaxpost.losses import (
    adaptive_coefficient,
    adaptive_entropy_coefficient,
    explained_variance,
    fixed_coefficient,
    full_kl,
    kl_estimate,
    value_clipped,
    value_loss,
)

LOGITS = jnp.array([1.0, 0.3, -0.5, 2.0, 0.0])
REFERENCE = jnp.array([0.2, 1.0, 0.0, 1.5, -1.0])
WAYS = {
    "k1": {"kind": "k1"},
    "k2": {"kind": "k2"},
    "k3": {"kind": "k3"},
    "k1+": {"kind": "k1", "straight_through": True},
    "k3+": {"kind": "k3", "straight_through": True},
    "k1 corrected": {"kind": "k1", "corrected": True},
    "k3 corrected": {"kind": "k3", "corrected": True},
}


@jax.jit
def expected(logits, reference):
    """The mean over what the policy may draw, of each estimate and of its gradient; and the divergence's own."""

    def mean(logits, kind, corrected=False, **options):
        log_probs = jax.nn.log_softmax(logits)
        drawn = jax.lax.stop_gradient(log_probs)
        ratios = log_probs - drawn if corrected else None
        estimate = kl_estimate(log_probs, jax.nn.log_softmax(reference), kind, log_ratios=ratios, **options)
        return jnp.sum(jnp.exp(drawn) * estimate)

    found = {name: jax.value_and_grad(mean)(logits, **options) for name, options in WAYS.items()}
    return found, jax.value_and_grad(full_kl)(logits, reference)


def test_estimates_and_their_gradients_on_average():
    """k1 and k3 have the KL's value and not its gradient; k2, straight through or not, and the corrected have it."""
    found, (kl, slope) = expected(LOGITS, REFERENCE)
    assert kl > 0.1
    for name in ("k1", "k3", "k1+", "k3+", "k1 corrected", "k3 corrected"):
        np.testing.assert_allclose(found[name][0], kl, rtol=1e-5, err_msg=name)
    for name in ("k2", "k1+", "k3+", "k1 corrected", "k3 corrected"):
        np.testing.assert_allclose(found[name][1], slope, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["k1"][1], 0, atol=1e-6)
    assert np.max(np.abs(found["k3"][1] - slope)) > 0.05 and abs(found["k2"][0] - kl) > 0.01


def test_extremes_stay_finite():
    """Values and gradients, ten thousand nats off to either side; and with a word excluded."""

    def all_of(x):
        limited = kl_estimate(x, jnp.zeros(2), "k3", limit=10.0)
        kinds = [kl_estimate(x, jnp.zeros(2), kind) for kind in ("k1", "k2", "k3", "abs")]
        excluding = jnp.array([-jnp.inf, 0.0]) + x[1]
        whole = jnp.stack([full_kl(x, -x), full_kl(excluding, x)])
        return jnp.concatenate([limited, *kinds, value_loss(x, -x, 0 * x), whole])

    far = jnp.array([[1e4, 0.0], [-1e4, 0.0]])
    values, slopes = jax.jit(jax.vmap(lambda x: (all_of(x), jax.jacrev(all_of)(x))))(far)
    assert values.shape == (2, 14) and np.all(np.isfinite(values)) and np.all(np.isfinite(slopes))
    assert np.all(values[:, 0] <= 10.0) and np.all(values[:, 0] >= 0.0)


def test_controllers():
    np.testing.assert_allclose(fixed_coefficient(0.3, 99.0, 256), 0.3)
    settings = {"target": 6.0, "horizon": 1000.0}
    for kl, wanted in ((6.0, 0.1), (6.6, 0.1 * 1.01), (60.0, 0.1 * 1.02), (-1.0, 0.1 * 0.98), (np.nan, 0.1)):
        np.testing.assert_allclose(adaptive_coefficient(0.1, kl, 100, **settings), wanted, rtol=1e-6)
    for entropy, start, wanted in ((0.1, 0.02, 0.025), (0.3, 0.02, 0.015), (0.3, 0.001, 0.0), (0.1, 1.0, 1.0)):
        np.testing.assert_allclose(adaptive_entropy_coefficient(start, entropy, target=0.2), wanted, rtol=1e-5)
    with pytest.raises(Fault, match="target is 0; it must be greater than 0"):
        adaptive_coefficient(0.1, 1.0, 8, target=0.0, horizon=10.0)
    with pytest.raises(Fault, match="no kind 'k4'; did you mean"):
        kl_estimate.__wrapped__(LOGITS, REFERENCE, "k4")


def test_the_value_loss_by_hand():
    """From 0 to 1 with a clip of 0.2: at return 2 the clipped error is worse and stops; at -1 the plain one is."""
    values, returns, old = jnp.array([1.0, 1.0, 0.1]), jnp.array([2.0, -1.0, 2.0]), jnp.zeros(3)

    @jax.jit
    def every(values):
        plain = [value_loss(values, returns), value_loss(values, returns, old, None)]
        slope = jax.grad(lambda v: jnp.sum(value_loss(v, returns, old)))(values)
        others = jax.grad(lambda r, o: jnp.sum(value_loss(values, r, o)), (0, 1))(returns, old)
        return value_loss(values, returns, old), value_clipped(values, returns, old), slope, plain, others

    losses, held, slope, plain, others = every(values)
    np.testing.assert_allclose(losses, [1.8**2 / 2, 2.0, 1.9**2 / 2], rtol=1e-6)
    np.testing.assert_array_equal(held, [1, 0, 0])
    np.testing.assert_allclose(slope, [0.0, 2.0, -1.9], rtol=1e-6)
    np.testing.assert_allclose(plain, [[0.5, 2.0, 1.9**2 / 2]] * 2, rtol=1e-6)
    assert not any(np.any(x) for x in others)


def test_explained_variance():
    returns, mask = np.array([1.0, 2.0, 3.0, 99.0], np.float32), np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    explained = jax.jit(explained_variance)
    hidden = np.array([0, 0, 0, np.nan], np.float32)
    for values, wanted in (
        (returns, 1.0),
        (returns + 5, 1.0),
        (0 * returns, 0.0),
        (-returns, -3.0),
        (returns / 2, 0.75),
    ):
        np.testing.assert_allclose(explained(values + hidden, returns, mask), wanted, atol=1e-6)
    assert explained(returns, np.ones(4, np.float32), mask) == 0 and explained(returns, returns, 0 * mask) == 0
