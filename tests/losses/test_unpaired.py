# SPDX-License-Identifier: Apache-2.0
"""Laws of the losses of single answers: what they share with each other and with pairs, and masks and means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import losses
from jaxpost.faults import Fault

N = 12
law = settings(max_examples=10, derandomize=True, deadline=None)


@jax.jit
def every(policy, reference, desirable, mask, z):
    """Losses, gradients of their sums, z of the masked answers, and a running mean of two batches."""
    losses_of = {
        "kto": lambda x: losses.kto(x, reference, desirable, z),
        "kto at 0": lambda x: losses.kto(x, reference, desirable, 0.0, desirable_weight=2.0),
        "apo": lambda x: losses.apo_zero_unpaired(x, reference, desirable, desirable_weight=2.0),
        "bco": lambda x: losses.bco(x, reference, desirable),
        "bco shifted": lambda x: losses.bco(x, reference, desirable, shift=z),
    }
    found = {name: loss(policy) for name, loss in losses_of.items()}
    gradients = {name: jax.grad(lambda x, loss=loss: jnp.sum(loss(x)))(policy) for name, loss in losses_of.items()}
    divergence, through = jax.value_and_grad(losses.kto_divergence)(policy, reference, mask)
    state = losses.running_mean(losses.RunningMean.start(), policy, mask)
    state = losses.running_mean(state, reference)
    pairs = policy[:6], policy[6:], reference[:6], reference[6:]
    found |= {"bco_pair": losses.dpo(*pairs, kind="bco_pair"), "apo_zero": losses.dpo(*pairs, kind="apo_zero")}
    return found, gradients, divergence, through, state


def drawn(seed):
    rng = np.random.default_rng(seed)
    reference = -rng.uniform(0, 40, N).astype(np.float32)
    policy = reference + rng.normal(0, 5, N).astype(np.float32)
    return policy, reference, np.arange(N) < 6, rng.integers(0, 2, N).astype(np.float32)


@law
@given(st.integers(0, 2**16), st.floats(0, 5, width=32))
def test_laws(seed, z):
    policy, reference, desirable, mask = drawn(seed)
    found, gradients, divergence, through, state = jax.device_get(
        every(policy, reference, desirable, mask, np.float32(z))
    )
    for name, gradient in gradients.items():
        assert np.all(gradient[desirable] < 0) and np.all(gradient[~desirable] > 0), name
    np.testing.assert_allclose(found["kto at 0"], found["apo"], rtol=1e-6)
    # Of pairs taken apart: the two halves make up the pair's loss.
    np.testing.assert_allclose(found["bco"][:6] + found["bco"][6:], found["bco_pair"], rtol=1e-5)
    np.testing.assert_allclose(found["apo"][:6] / 2 + found["apo"][6:], found["apo_zero"], rtol=1e-5)
    # A higher point of reference makes a gain less and a loss less bad.
    assert np.all(found["kto"][desirable] >= found["apo"][desirable] / 2 - 1e-6)
    assert np.all(found["kto"][~desirable] <= found["apo"][~desirable] + 1e-6)
    ratios = (policy - reference)[mask != 0].astype(np.float64)
    np.testing.assert_allclose(divergence, max(0.0, ratios.mean()) if ratios.size else 0.0, rtol=1e-4, atol=1e-5)
    assert not np.any(through)
    seen = np.concatenate([policy[mask != 0], reference])
    np.testing.assert_allclose(state, (seen.mean(), seen.size), rtol=1e-5)


def test_extreme_log_probabilities_stay_finite_and_absent_answers_do_not_matter():
    policy, reference, desirable, mask = drawn(0)
    policy, reference = np.tile(np.array([0, -1e4, -1e4], np.float32), 4), np.tile(np.array([-1e4, 0], np.float32), 6)
    for z in (0.0, 1e4):
        found, gradients, *_ = every(policy, reference, desirable, mask, np.float32(z))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((found, gradients)))
    policy[mask == 0] = np.nan
    _, _, divergence, _, state = every(policy, reference, desirable, mask, np.float32(0.0))
    assert np.isfinite(divergence) and np.isfinite(state.mean)


def test_what_cannot_be_meant_is_refused():
    x = jnp.zeros(2)
    with pytest.raises(Fault, match="kto: beta is -0.1; it must be greater than 0"):
        losses.kto(x, x, x > 0, 0.0, beta=-0.1)
