# SPDX-License-Identifier: Apache-2.0
"""Signs as bits, eight to a byte."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import quant
from jaxpost.params import ParamSpec, normal
from jaxpost.quant.sign import Sign


def spec_of(lead, inner, outer):
    letters = iter("abcdefghijkl")
    dims = " : ".join(" ".join(next(letters) for _ in group) for group in (lead, inner, outer))
    return ParamSpec((*lead, *inner, *outer), dims, normal(1.0))


SHAPES = [((), (1,), (1,)), ((2,), (8,), (3,)), ((2, 3), (3, 7), (2, 5)), ((), (16, 1), (4,)), ((3,), (19,), (1, 2))]


@settings(max_examples=10)
@given(st.sampled_from(SHAPES), st.integers(0, 2**16))
def test_what_is_unpacked_is_the_signs(shape, seed):
    lead, inner, outer = shape
    spec = spec_of(lead, inner, outer)
    w = np.random.default_rng(seed).integers(-1, 2, spec.shape).astype(np.float32)
    q = quant.quantise(jnp.asarray(w), spec, Sign())
    assert q.codes.dtype == jnp.uint8 and q.codes.shape == (*lead, math.ceil(math.prod(inner) / 8), *outer)
    np.testing.assert_array_equal(quant.dequantise(q), np.where(w > 0, 1.0, -1.0))  # of 0: -1
    assert quant.dequantise(q, jnp.bfloat16).dtype == jnp.bfloat16


def test_the_layout():
    """Bit j of byte i is row 8 i + j; what is left over is 0."""
    spec = spec_of((), (10,), (1,))
    w = jnp.asarray([1, -1, -1, 1, 0, 0, 0, 2, -3, 5], jnp.float32).reshape(10, 1)
    np.testing.assert_array_equal(quant.quantise(w, spec, Sign()).codes, [[0b10001001], [0b00000010]])


@pytest.mark.parametrize("outer", [(5,), (2, 3)])
def test_rows_of_a_table(outer):
    spec = spec_of((), (19,), outer)
    q = quant.quantise(jax.random.normal(jax.random.key(0), spec.shape), spec, Sign())
    ids = jnp.asarray([[0, 7, 8], [18, 9, 0]])
    assert isinstance(q.format, Sign)
    found = q.format.rows(q.codes, ids, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, quant.dequantise(q)[ids])


def test_specs_of_signs_are_theirs():
    spec = spec_of((3,), (10, 2), (4, 5))
    made = quant.quantise_specs({"w": spec}, Sign(), ("w",))["w"]
    assert made.codes.shape == (3, 3, 4, 5) and made.codes.letters == ("a", "b", "d", "e")
    assert made.codes.dtype == jnp.uint8 and made.codes.derived
