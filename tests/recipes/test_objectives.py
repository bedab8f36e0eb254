# SPDX-License-Identifier: Apache-2.0
"""Objectives of pairs: what no pair is at has no say, whatever the loss makes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import losses
from jaxpost.losses.preference import KINDS
from jaxpost.recipes.preferences.answers import Answers, weighted_means
from jaxpost.recipes.preferences.objectives import Compared, Cpo, Dpo, Orpo, Simpo

SMOOTHED = {"exo_pair": 0.1, "robust": 0.1}
OBJECTIVES = {
    **{kind: Dpo(kind, label_smoothing=SMOOTHED.get(kind, 0.0)) for kind in KINDS},
    **{name: Dpo(divergence=name) for name in ("forward_kl", "js", "alpha")},
    **{f"cpo_{kind}": Cpo(kind) for kind in ("sigmoid", "hinge", "ipo")},
    "simpo": Simpo(),
    "alphapo": Simpo(alpha=0.25),
    "orpo": Orpo(),
    "wpo": Dpo(wpo=True),
}


def rows(log_probs, places):
    """The two pairs in one row."""
    lengths = jnp.array([[3.0, 5.0, 7.0, 2.0]])
    reference = jnp.array([[-4.0, -6.0, -8.0, -3.0]])
    whole = [jnp.pad(x, ((0, 0), (0, 2 * places))) for x in (log_probs, lengths, reference)]
    sums, lengths, reference = whole
    said = Answers(sums, lengths, -lengths)
    mask = jnp.pad(jnp.array([[1.0, 0.5]]), ((0, 0), (0, places)))
    return Compared(said.pairs(0), said.pairs(1), reference[:, 0::2], reference[:, 1::2], mask, jnp.float32(5.0))


@functools.cache
def program():
    """All of them at once, with and without places for more: one compilation."""

    @jax.jit
    def measured(log_probs):
        def loss(log_probs, objective, places):
            pairs = rows(log_probs, places)
            return weighted_means({"loss": objective.losses(pairs)}, pairs.mask, jnp.float32(1.5))["loss"]

        both = {places: {} for places in (0, 3)}
        for places, found in both.items():
            for name, objective in OBJECTIVES.items():
                found[name] = jax.value_and_grad(loss)(log_probs, objective, places)
        return both

    return jax.device_get(measured(jnp.array([[-3.0, -7.0, -9.0, -2.5]])))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_places_without_a_pair_change_nothing(name):
    (wanted, slope), (found, other) = program()[0][name], program()[3][name]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(other, slope, rtol=1e-4, atol=1e-6)
    assert np.isfinite(found) and np.abs(slope).max() > 0
    assert bool(OBJECTIVES[name].coupled) == name.startswith("aot")


def test_they_are_the_losses_of_the_library():
    pairs = rows(jnp.array([[-3.0, -7.0, -9.0, -2.5]]), 0)
    said = pairs.chosen.log_probs, pairs.rejected.log_probs
    mpo = Dpo(weight=0.8, also={"bco_pair": 0.2, "sft": 1.0}, nll="token")
    wanted = losses.dpo(
        *said, pairs.reference_chosen, pairs.reference_rejected, kind={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0},
        nll=-said[0] / 5.0,
    )  # fmt: skip
    np.testing.assert_allclose(mpo.losses(pairs), wanted, rtol=1e-6)
    lengths = pairs.chosen.lengths, pairs.rejected.lengths
    np.testing.assert_allclose(
        Simpo(beta=2.0, gamma=0.5).losses(pairs), losses.simpo(*said, *lengths, beta=2.0, gamma=0.5), rtol=1e-6
    )
    assert not any(one.refers for one in (Cpo(), Simpo(), Orpo())) and Dpo().refers and Dpo(ld_alpha=0.3).beyond == 0.3
