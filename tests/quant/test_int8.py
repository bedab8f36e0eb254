# SPDX-License-Identifier: Apache-2.0
"""Eight bits: the bound on the error, and the form of codes and scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxpost import quant
from jaxpost.params import ParamSpec, normal

DIMS = (": d : f", "l : d : n h", "l : n h : d", "l e : d : f", ": d :", ": : f")


def specs_of(dims: str) -> ParamSpec:
    letters = dims.replace(":", " ").split()
    return ParamSpec(tuple(range(2, 2 + len(letters))), dims, normal(1.0))


def scale_of(w: np.ndarray, spec: ParamSpec) -> np.ndarray:
    lead = len(spec.groups[0])
    axes = tuple(range(lead, lead + len(spec.groups[1])))
    return np.max(np.abs(w.astype(np.float64)), axis=axes, keepdims=True) / 127


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data(), st.sampled_from(DIMS))
def test_the_error_is_at_most_half_a_scale(data, dims):
    spec = specs_of(dims)
    numbers = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0, -127.0, 0.5, 63.5])
    w = data.draw(hnp.arrays(np.float32, spec.shape, elements=numbers, fill=st.just(0.0)))
    w = np.where(np.abs(w) < 1e-30, 0, w)  # a scale that is subnormal is flushed to zero
    q = quant.quantise(jnp.asarray(w), spec, quant.Int8())
    error = np.abs(np.asarray(quant.dequantise(q), np.float64) - w)
    scale = scale_of(w, spec)
    assert q.codes.dtype == jnp.int8 and q.codes.shape == w.shape
    assert np.all(np.asarray(q.codes, int) >= -127)
    np.testing.assert_allclose(q.scales["scale"], scale, rtol=1e-6)
    # Half a scale, and the rounding of the quotient and of the product.
    assert np.all(error <= scale * 0.5 + np.abs(w) * 2.0**-22)


@pytest.mark.parametrize("dims", DIMS)
def test_the_scale_keeps_the_contracted_axes_with_size_one(dims):
    spec = specs_of(dims)
    q = quant.quantise(jnp.ones(spec.shape), spec, quant.Int8())
    lead, inner, outer = (spec.sizes(group) for group in range(3))
    assert q.scales["scale"].shape == (*lead, *(1,) * len(inner), *outer)
    np.testing.assert_allclose(quant.dequantise(q), np.ones(spec.shape), rtol=1e-6)


def test_a_zero_channel_stays_zero_and_finite():
    spec = ParamSpec((3, 2), ": d : f", normal(1.0))
    q = quant.quantise(jnp.array([[0.0, 1.0], [0.0, -2.0], [0.0, 0.5]]), spec, quant.Int8())
    np.testing.assert_array_equal(quant.dequantise(q)[:, 0], np.zeros(3))
    np.testing.assert_array_equal(q.codes[:, 1], [64, -127, 32])
    zero = jnp.zeros((3, 2))
    np.testing.assert_array_equal(quant.dequantise(quant.quantise(zero, spec, quant.Int8())), zero)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dequantising_rounds_once_to_the_type_asked_for(dtype):
    spec = ParamSpec((4, 3), ": d : f", normal(1.0))
    w = jax.random.normal(jax.random.key(0), spec.shape).astype(dtype)
    q = quant.quantise(w, spec, quant.Int8())
    assert quant.dequantise(q, dtype).dtype == dtype
    np.testing.assert_array_equal(quant.dequantise(q, dtype), quant.dequantise(q).astype(dtype))
