# SPDX-License-Identifier: Apache-2.0
"""The difference of two models."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, quant, trees
from jaxpost.delta import Dense, Insert
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, normal

BASE = {"a": jnp.ones((2, 3)), "b": {"c": jnp.zeros(4), "s": None}}


def with_(**changes):
    """The base with some leaves replaced."""
    return trees.unflatten({path: changes.get(path[-1], leaf) for path, leaf in trees.flatten(BASE).items()})


def test_only_what_changed_is_in_it():
    assert delta.difference(BASE, BASE) == {}
    change = delta.difference(with_(c=jnp.full(4, 0.5), s=jnp.ones(2)), BASE)
    assert change.keys() == {"b/c", "b/s"}
    assert isinstance(change["b/c"], Dense) and isinstance(change["b/s"], Insert)
    np.testing.assert_array_equal(change["b/c"].dw, np.full(4, 0.5))


def test_a_number_that_broke_is_a_difference():
    assert "a" in delta.difference(with_(a=jnp.full((2, 3), jnp.nan)), BASE)


def test_sixteen_bit_models_differ_in_float32():
    fine, base = ({"a": jnp.full(3, v, jnp.bfloat16)} for v in (1.0078125, 1.0))
    change = delta.difference(fine, base)["a"].dw
    assert change.dtype == jnp.float32
    np.testing.assert_array_equal(change, np.full(3, 0.0078125))


def test_quantised_and_bound_models_are_compared_as_what_they_stand_for():
    spec = ParamSpec((2, 3), ": d : f", normal(1.0))
    quantised = {"a": quant.quantise(BASE["a"], spec, quant.Int8())}
    bound = delta.bind(quantised, {"a": Dense(jnp.full((2, 3), 0.25))})
    assert delta.difference(quantised, quantised) == {}
    np.testing.assert_allclose(delta.difference(bound, quantised)["a"].dw, np.full((2, 3), 0.25), rtol=1e-6)


@pytest.mark.parametrize(
    "fine, text",
    [
        (with_(a=jnp.ones((2, 1))), r"'a' is \(2, 1\) in the tuned model and \(2, 3\) in the base"),
        (with_(a=jnp.ones((3, 2))), r"'a' is \(3, 2\)"),
        (with_(a=jnp.ones(3)), r"'a' is \(3,\)"),
        ({**BASE, "extra": jnp.ones(1)}, "only one of the two models has extra"),
        ({"a": BASE["a"]}, "only one of the two models has b/c, b/s"),
        (with_(c=None), "the tuned model lacks 'b/c'"),
    ],
)
def test_models_that_do_not_match_are_a_fault(fine, text):
    with pytest.raises(Fault, match=text):
        delta.difference(fine, BASE)
