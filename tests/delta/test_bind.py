# SPDX-License-Identifier: Apache-2.0
"""Binding and folding: which places exist, what stays untouched, what bad input is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, quant
from jaxpost.delta import Dense, Insert, LowRank
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, normal

PARAMS = {"layers": {"q": jnp.ones((2, 3, 4)), "q_bias": None}, "norm": jnp.ones(3)}


def dense(shape) -> Dense:
    return Dense(jnp.ones(shape))


@pytest.mark.parametrize("lay", [delta.bind, delta.fold])
@pytest.mark.parametrize(
    "path, edit, text",
    [
        ("layers/p", dense(3), "no parameter 'layers/p'; did you mean layers/q"),
        ("layers", dense(3), "no parameter 'layers'"),
        ("nrom", Insert(jnp.ones(3)), "no parameter 'nrom'; did you mean norm"),
        ("norm", Insert(jnp.ones(3)), "'norm' already holds a weight, and a slot holds one; Insert fills empty slots"),
        (
            "layers/q_bias",
            dense((2, 4)),
            "'layers/q_bias' is an empty slot of this model, and Dense edits weights; Insert fills",
        ),
    ],
)
def test_a_place_that_does_not_fit_is_a_fault(lay, path, edit, text):
    with pytest.raises(Fault, match=text):
        lay(PARAMS, {path: edit})


def test_a_slot_filled_once_is_taken():
    filled = delta.bind(PARAMS, {"layers/q_bias": Insert(jnp.ones((2, 4)))})
    with pytest.raises(Fault, match="already holds"):
        delta.bind(filled, {"layers/q_bias": Insert(jnp.ones((2, 4)))})
    again = delta.bind(filled, {"layers/q_bias": dense((2, 4))})
    np.testing.assert_array_equal(delta.dense(again["layers"]["q_bias"]), 2 * np.ones((2, 4)))


@pytest.mark.parametrize("lay", [delta.bind, delta.fold])
def test_nothing_else_is_touched(lay):
    edits = {"norm": dense(3)}
    weights = lay(PARAMS, edits)
    assert weights["layers"]["q"] is PARAMS["layers"]["q"] and weights["layers"]["q_bias"] is None
    assert isinstance(PARAMS["norm"], jax.Array), "the tree that was given stays as it was"
    assert jax.tree.structure(lay(PARAMS, {})) == jax.tree.structure(PARAMS)


def test_binding_does_no_arithmetic():
    edits = {"layers/q": LowRank(jnp.ones((2, 3, 1)), jnp.ones((2, 1, 4)), jnp.ones(2)), "norm": dense(3)}
    assert jax.make_jaxpr(lambda p, e: delta.bind(p, e))(PARAMS, edits).jaxpr.eqns == []


def test_an_empty_slot_costs_nothing():
    """A model with an empty slot compiles to the program that it compiles to without the slot."""

    def f(w):
        y = delta.einsum("bsd,df->bsf", jnp.ones((1, 2, 3)), w["q"])
        return y if w.get("bias") is None else y + w["bias"]

    programs = [str(jax.make_jaxpr(f)(w)) for w in ({"q": jnp.ones((3, 4))}, {"q": jnp.ones((3, 4)), "bias": None})]
    assert programs[0] == programs[1]


def test_fold_is_float32_even_over_sixteen_bits():
    """Half a unit in the last place of a 16-bit weight survives folding."""
    base = {"w": jnp.ones(4, jnp.bfloat16)}
    folded = delta.fold(base, {"w": Dense(jnp.full(4, 2.0**-10))})
    assert folded["w"].dtype == jnp.float32
    np.testing.assert_array_equal(folded["w"], np.full(4, 1 + 2.0**-10))


def test_halves_carry_the_fields_that_the_edit_names():
    edit = LowRank(jnp.ones((3, 1)), jnp.ones((1, 4)), jnp.ones(()), fixed=("a", "scale"))
    trainable, fixed = delta.partition({"w": edit, "v": dense(3)})
    assert (trainable["w"].a, trainable["w"].scale, fixed["w"].b) == (None, None, None)
    assert trainable["w"].b is edit.b and fixed["w"].a is edit.a
    assert jax.tree.leaves(fixed["v"]) == []
    whole = delta.combine(trainable, fixed)
    assert whole["w"].a is edit.a and whole["w"].b is edit.b and whole["w"].fixed == ("a", "scale")


def test_halves_of_an_edit_that_holds_a_quantised_array():
    spec = ParamSpec((3, 4), ": d : f", normal(1.0))
    dw = quant.quantise(jnp.ones((3, 4)), spec, quant.Int8())
    for fixed_fields in ((), ("dw",)):
        edits = {"w": Dense(dw, fixed=fixed_fields)}
        whole = delta.combine(*delta.partition(edits))
        assert jax.tree.structure(whole) == jax.tree.structure(edits) and whole["w"].dw is dw


def test_every_edit_says_what_is_fixed_and_is_an_edit():
    for kind in (Dense, Insert, LowRank, delta.Scale):
        fields = {field.name: field for field in dataclasses.fields(kind)}
        assert not fields["fixed"].metadata["pytree_node"]
        assert set(fields["fixed"].default) <= set(fields)
        assert isinstance(kind(*[None] * sum("pytree_node" not in f.metadata for f in fields.values())), delta.Edit)
