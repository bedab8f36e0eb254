# SPDX-License-Identifier: Apache-2.0
"""Folding into a quantised base: exact where nothing is quantised, and what it costs is told where something is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, quant
from jaxpost.delta.refold import refold
from jaxpost.quant import QArray
from tests.delta.drawn import SPECS, base, drawn

CHOSEN = {"layers/q": "lora", "embed": "dense"}


@pytest.mark.parametrize("format", [quant.Int8(), quant.Nf4(block=4, double=False)])
def test_the_drift_is_how_far_it_is_from_the_exact_fold(format):
    packed = quant.quantise_tree(base(), SPECS, format, ("q", "up"))
    made = drawn(CHOSEN, 0)
    weights, drifts = refold(packed, made)
    assert drifts.keys() == {"layers/q"}
    exact = delta.fold(packed, made)
    found = weights["layers"]["q"]
    assert isinstance(found, QArray) and found.format == packed["layers"]["q"].format
    assert weights["layers"]["up"] is packed["layers"]["up"], "what is not edited stays as it is"
    np.testing.assert_array_equal(weights["embed"], exact["embed"])
    np.testing.assert_array_equal(weights["layers"]["q_bias"], exact["layers"]["q_bias"])
    wanted = exact["layers"]["q"]
    off = np.linalg.norm((quant.dequantise(found) - wanted).reshape(2, -1), axis=-1)
    np.testing.assert_allclose(
        drifts["layers/q"].of_weight, off / np.linalg.norm(wanted.reshape(2, -1), axis=-1), rtol=1e-4
    )
    change = np.asarray(wanted - quant.dequantise(packed["layers"]["q"])).reshape(2, -1)
    np.testing.assert_allclose(drifts["layers/q"].of_change, off / np.linalg.norm(change, axis=-1), rtol=1e-4)
    assert np.all(drifts["layers/q"].of_weight > 1e-4)


def test_nothing_quantised_nothing_drifts():
    made = drawn(CHOSEN, 0)
    weights, drifts = refold(base(), made)
    assert drifts == {}
    jax.tree.map(np.testing.assert_array_equal, weights, delta.fold(base(), made))


def test_a_change_smaller_than_a_step_is_lost_and_that_is_told():
    packed = quant.quantise_tree(base(), SPECS, quant.Int8(), ("q",))
    made = {"layers/q": delta.Dense(jnp.full((2, 4, 3, 2), 1e-5))}
    weights, drifts = refold(packed, made)
    np.testing.assert_array_equal(weights["layers"]["q"].codes, packed["layers"]["q"].codes)
    assert np.all(drifts["layers/q"].of_change > 0.7) and np.all(drifts["layers/q"].of_weight < 1e-4)
