# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding against its formula."""

import math

import jax.numpy as jnp
import numpy as np

from jaxpost.models.rope import Llama3, Rope, rotate


def test_frequencies_are_powers_of_theta():
    np.testing.assert_allclose(Rope(theta=100.0).frequencies(4), [1.0, 0.1], rtol=1e-6)


def test_stretched_frequencies_follow_the_wavelengths():
    """Short waves stay, long ones are stretched by the factor, those in between are mixed (Llama 3.1)."""
    rope = Rope(500000.0, Llama3(factor=8.0, low=1.0, high=4.0, original=8192))
    plain, found = Rope(theta=500000.0).frequencies(128), rope.frequencies(128)
    waves = 2 * math.pi / plain
    short, long = waves < 8192 / 4, waves > 8192
    between = ~short & ~long
    assert short.sum() > 5 and long.sum() > 5 and between.sum() > 2
    np.testing.assert_allclose(found[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(found[long], plain[long] / 8, rtol=1e-6)
    smooth = (8192 / waves[between] - 1) / 3
    np.testing.assert_allclose(found[between], plain[between] * (smooth + (1 - smooth) / 8), rtol=1e-5)


def test_each_pair_turns_by_position_times_frequency():
    """As complex numbers: coordinate i is the real part, coordinate i + h/2 the imaginary one."""
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 900, 1, 2]])
    turned = np.asarray(rotate(jnp.asarray(x), Rope().turns(jnp.asarray(positions), None, 8)))
    angles = positions[:, :, None, None] * Rope().frequencies(8)
    expected = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
    np.testing.assert_allclose(turned[..., :4] + 1j * turned[..., 4:], expected, atol=1e-4)
