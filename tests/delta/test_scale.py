# SPDX-License-Identifier: Apache-2.0
"""Factors on inputs and outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params
from jaxpost.delta import Scale, Scales
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder, specs
from tests.jaxprs import products

SPECS = specs(Decoder(vocab=14, d=8, layers=2, heads=4, kv_heads=2, head_size=4, ffn=12))


def test_shapes_have_ones_on_the_other_side():
    out, inner = Scales(("k", "embed"))(SPECS), Scales(("down", "embed"), "in")(SPECS)
    assert out["layers/attn/k"].s.shape == (2, 1, 2, 4) and out["embed"].s.shape == (1, 8)
    assert inner["layers/mlp/down"].s.shape == (2, 12, 1) and inner["embed"].s.shape == (14, 1)
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(params.init(out, jax.random.key(0))))


@pytest.mark.parametrize("targets, text", [(("norm",), "'norm' is no matrix"), (("kq",), "no parameter matches 'kq'")])
def test_bad_targets_are_a_fault(targets, text):
    with pytest.raises(Fault, match=text):
        Scales(targets)(SPECS)


def test_by_hand():
    w, x = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[[1.0, 1.0]]])
    out = delta.Bound(w, Scale(jnp.array([[10.0, 100.0]]), "out"))
    inner = delta.Bound(w, Scale(jnp.array([[10.0], [100.0]]), "in"))
    np.testing.assert_array_equal(delta.einsum("bsd,df->bsf", x, out), [[[40, 600]]])
    np.testing.assert_array_equal(delta.einsum("bsd,df->bsf", x, inner), [[[310, 420]]])
    np.testing.assert_array_equal(delta.einsum("bsd,fd->bsf", x, out), [[[210, 430]]])
    np.testing.assert_array_equal(delta.einsum("bsd,fd->bsf", x, inner), [[[30, 700]]])
    np.testing.assert_array_equal(delta.take(out, jnp.array([1])), [[30, 400]])
    np.testing.assert_array_equal(delta.take(inner, jnp.array([1])), [[300, 400]])


def test_the_weight_is_never_touched():
    w = delta.Bound(jnp.ones((7, 5)), Scale(jnp.ones((1, 5)), "out"))
    sizes = [
        e.outvars[0].aval.shape
        for e in jax.make_jaxpr(lambda w, x: delta.einsum("bsd,df->bsf", x, w))(w, jnp.ones((2, 3, 7))).jaxpr.eqns
    ]
    assert (7, 5) not in sizes
    assert products(lambda w, x: delta.einsum("bsd,df->bsf", x, w), w, jnp.ones((2, 3, 7))) == [(2, 3, 5)]
