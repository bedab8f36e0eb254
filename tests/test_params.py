# SPDX-License-Identifier: Apache-2.0
"""The record of a parameter and what is derived from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import params
from jaxpost.delta import Full, Insert, Lora
from jaxpost.params import ParamSpec, constant, normal

KEY = jax.random.key(0)
Q = ParamSpec((2, 3, 4, 5), "l : d : n h", normal(0.5))
SPECS = {
    "q": Q,
    "norm": ParamSpec((3,), ": : d", constant(1.0), jnp.bfloat16),
    "bias": ParamSpec((4,), ": : n", constant(0.0), optional=True),
}


def test_groups_of_axes():
    assert Q.groups == (("l",), ("d",), ("n", "h")) and Q.letters == ("l", "d", "n", "h")
    assert [Q.sizes(group) for group in range(3)] == [(2,), (3,), (4, 5)]
    assert [SPECS["norm"].sizes(group) for group in range(3)] == [(), (), (3,)]


@pytest.mark.parametrize("dims", ["l d : n h", "l : d : n", "l : d : n h : r", "", "l : d : n h r"])
def test_dims_that_do_not_fit_the_shape_are_refused(dims):
    with pytest.raises(ValueError, match="do not name the axes"):
        ParamSpec((2, 3, 4, 5), dims, normal(1.0))


def test_init_gives_shapes_types_and_empty_slots():
    weights = params.init(SPECS, KEY)
    assert weights["bias"] is None
    assert weights["q"].shape == (2, 3, 4, 5) and weights["norm"].dtype == jnp.bfloat16
    assert 0.35 < float(jnp.std(weights["q"])) < 0.65
    assert jax.tree.map(lambda x: (x.shape, x.dtype), weights) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params.abstract(SPECS)
    )


def test_init_of_one_parameter_depends_on_no_other():
    alone = params.init({"q": Q}, KEY)["q"]
    twice = params.init({"a": Q, **SPECS}, KEY)
    np.testing.assert_array_equal(twice["q"], alone)
    assert not np.array_equal(twice["a"], alone), "places with equal specs start differently"
    assert not np.array_equal(params.init({"q": Q}, jax.random.key(1))["q"], alone)


def test_init_is_the_same_under_jit():
    plain, jitted = params.init(SPECS, KEY), jax.jit(lambda k: params.init(SPECS, k))(KEY)
    assert jax.tree.structure(plain) == jax.tree.structure(jitted)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_count_leaves_empty_slots_out():
    assert params.count(SPECS) == 2 * 3 * 4 * 5 + 3


def test_a_delta_of_specs_is_a_spec_tree_like_any_other():
    lora = Lora(rank=2, targets=("q",))(SPECS)
    assert params.count(lora) == 2 * (3 * 2 + 2 * 20 + 1)
    assert params.init(lora, KEY)["q"].b.shape == (2, 2, 4, 5)
    assert params.count(Full()(SPECS)) == params.count(SPECS)
    slot = Insert(ParamSpec((4,), ": : n", constant(2.0)))
    np.testing.assert_array_equal(params.init({"bias": slot}, KEY)["bias"].value, np.full(4, 2.0))
