# SPDX-License-Identifier: Apache-2.0
"""The places where a weight meets an activation, one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, quant, shard
from jaxpost.delta import Dense, Einsum, Take
from jaxpost.delta.contract import letters
from jaxpost.params import ParamSpec, normal


@pytest.mark.parametrize(
    "spec, forward, down, up",
    [
        ("bsd,df->bsf", True, "bsd,dr->bsr", "bsr,rf->bsf"),
        ("bsd, dnh -> bsnh", True, "bsd,dr->bsr", "bsr,rnh->bsnh"),
        ("bsnh,nhd->bsd", True, "bsnh,nhr->bsr", "bsr,rd->bsd"),
        ("bsd,vd->bsv", False, "bsd,rd->bsr", "bsr,vr->bsv"),
        ("ebsd,edf->ebsf", True, "ebsd,edr->ebsr", "ebsr,erf->ebsf"),
        ("bsr,rf->bsf", True, "bsr,rz->bsz", "bsz,zf->bsf"),
    ],
)
def test_a_contraction_splits_into_a_factor_pair(spec, forward, down, up):
    op = Einsum(spec)
    assert op.forward is forward
    assert [part.spec for part in op.split()] == [down, up]


def test_einsum_computes_in_the_type_of_the_activation():
    w = jnp.full((2, 3), 1 + 2.0**-12)
    assert delta.einsum("bsd,df->bsf", jnp.ones((1, 1, 2), jnp.bfloat16), w).dtype == jnp.bfloat16
    y = delta.einsum("bsd,df->bsf", jnp.ones((1, 1, 2)), w.astype(jnp.bfloat16))
    assert y.dtype == jnp.float32


def test_take_gives_rows_in_the_type_asked_for():
    table = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(delta.take(table, jnp.array([[2, 0]])), [[[4, 5], [0, 1]]])
    assert delta.take(table, jnp.array([1]), jnp.bfloat16).dtype == jnp.bfloat16
    assert delta.take(table.astype(jnp.bfloat16), jnp.array([1])).dtype == jnp.bfloat16
    assert isinstance(Take(jnp.float32).split()[1], Einsum)


def test_a_table_under_a_dense_edit_is_not_added_up_for_a_few_rows():
    table, ids = jnp.ones((1000, 2)), jnp.array([3])
    w = delta.bind({"w": table}, {"w": Dense(table)})["w"]
    sizes = [e.outvars[0].aval.shape for e in jax.make_jaxpr(lambda w: delta.take(w, ids))(w).jaxpr.eqns]
    assert all(1000 not in shape for shape in sizes) and len(sizes) > 1


def test_dense_edits_in_float32_are_a_master_copy_of_a_16_bit_base():
    """Four changes, each too small for the base's type, add up to one that is not."""
    w, small = jnp.ones((2, 2), jnp.bfloat16), jnp.full((2, 2), 2.0**-9)
    assert jnp.all(w + small.astype(jnp.bfloat16) == w)
    for _ in range(4):
        w = delta.Bound(w, Dense(small))
    y = delta.einsum("bsd,df->bsf", jnp.ones((1, 1, 2), jnp.bfloat16), w)
    np.testing.assert_array_equal(y.astype(jnp.float32), np.full((1, 1, 2), 2 + 2.0**-6))


@pytest.mark.parametrize("w", ["array", "quantised", "dense", "low rank"])
def test_no_weight_sized_residual_is_kept_for_the_backward_pass(w):
    """Dequantised and summed weights are formed again; only what was given is kept."""
    plain = jax.random.normal(jax.random.key(0), (32, 32))
    spec = ParamSpec((32, 32), ": d : f", normal(1.0))
    weight = {
        "array": plain,
        "quantised": quant.quantise(plain, spec, quant.Int8()),
        "dense": delta.Bound(quant.quantise(plain, spec, quant.Int8()), Dense(plain)),
        "low rank": delta.Bound(
            quant.quantise(plain, spec, quant.Int8()), delta.LowRank(plain[:, :1], plain[:1], jnp.ones(()))
        ),
    }[w]
    _, pullback = jax.vjp(lambda x: delta.einsum("bsd,df->bsf", x, weight), jnp.ones((1, 1, 32)))
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.shape == (32, 32) and leaf.dtype == jnp.float32]
    given = [leaf for leaf in jax.tree.leaves(weight) if leaf.shape == (32, 32) and leaf.dtype == jnp.float32]
    assert len(kept) <= len(given)


def test_letters_name_every_axis_behind_the_lead_ones():
    spec = ParamSpec((2, 3, 4), "l : d : f", normal(1.0))
    base = quant.quantise(jnp.ones((2, 3, 4)), spec, quant.Int8())
    low = delta.LowRank(jnp.ones((2, 3, 1)), jnp.ones((2, 1, 4)), jnp.ones(2), dropout=0.5)
    params = delta.bind({"w": base}, {"w": low}, jax.random.key(0))
    params = delta.bind(params, {"w": delta.Scale(jnp.ones((2, 1, 4)))})
    params = delta.bind(params, {"w": Dense(jnp.ones((2, 3, 4)))})
    named = letters(params["w"], "d", "f")
    assert jax.tree.structure(named) == jax.tree.structure(params["w"])
    checked = jax.tree.map(lambda x, axes: x.ndim == 1 + len(axes.split()), params["w"], named)
    assert all(jax.tree.leaves(checked)) and len(jax.tree.leaves(checked)) == 8


def test_constraining_one_layers_weights_changes_no_number_and_no_form():
    mesh = shard.make_mesh(shard.MeshShape(2, 2, 2))
    specs = {"w": ParamSpec((2, 3, 4), "l : d : f", normal(1.0)), "none": ParamSpec((2, 4), "l : : f", normal(1.0))}
    low = delta.LowRank(jnp.ones((3, 1)), jnp.ones((1, 4)), jnp.ones(()), dropout=0.5)
    weights = delta.bind({"w": jnp.ones((3, 4)), "none": None}, {"w": low}, jax.random.key(0))
    with jax.set_mesh(mesh):
        done = jax.jit(lambda w: delta.constrain_weights(w, specs))(weights)
    assert jax.tree.structure(done) == jax.tree.structure(weights)
    assert done["w"].w.sharding.spec[-1] == "tensor" and done["w"].edit.b.sharding.spec[-1] == "tensor"
    np.testing.assert_array_equal(done["w"].w, weights["w"].w)


def test_a_weight_under_dense_edits_is_formed_once_and_any_other_left_alone():
    w = jnp.ones((3, 4), jnp.bfloat16)
    stacked = delta.Bound(delta.Bound(w, Dense(jnp.ones((3, 4)))), Dense(jnp.full((3, 4), 2.0)))
    np.testing.assert_array_equal(delta.formed(stacked, jnp.float32), np.full((3, 4), 4.0))
    low = delta.Bound(w, delta.LowRank(jnp.ones((3, 1)), jnp.ones((1, 4)), jnp.ones(())))
    over = delta.Bound(low, Dense(jnp.ones((3, 4))))
    assert delta.formed(w, jnp.float32) is w and delta.formed(low, jnp.float32) is low
    assert delta.formed(over, jnp.float32) is over, "the factors keep their faster way"
