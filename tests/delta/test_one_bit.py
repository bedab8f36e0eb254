# SPDX-License-Identifier: Apache-2.0
"""One-bit deltas: how they are made, what they cost, how they are kept."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpost import delta, params, quant, trees
from jaxpost.delta import BitDelta, Dense, Insert, OneBit
from jaxpost.delta.bitdelta import filled, write
from jaxpost.delta.one_bit import one_bit_specs
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, normal
from tests.delta.drawn import FLAT, SPECS, base, numbers

CHANGED = ("layers/q", "layers/up", "layers/norm", "embed")


def tuned(paths=CHANGED):
    """The base with random changes, some of them zero, of the weights at these paths."""
    rng = np.random.default_rng(3)
    flat = trees.flatten(base())
    for path in paths:
        change = numbers(rng, FLAT[path].shape)
        flat[path] = flat[path] + jnp.where(jnp.abs(change) < 0.1, 0.0, change)
    return trees.unflatten(flat)


def made(fine=None, weights=None, **options):
    return delta.one_bit(tuned() if fine is None else fine, base() if weights is None else weights, SPECS, **options)


def test_signs_and_mean_sizes_of_each_layer():
    found = made()
    assert found.keys() == set(CHANGED)
    for path in ("layers/q", "layers/up"):
        edit, lead = found[path], FLAT[path].sizes(0)
        change = np.asarray(trees.flatten(tuned())[path]) - np.asarray(trees.flatten(base())[path])
        assert isinstance(edit, OneBit) and edit.scale.shape == lead  # of experts, each has its own
        rows = np.abs(change).reshape(*lead, -1)
        np.testing.assert_allclose(edit.scale, rows.mean(axis=-1), rtol=1e-5)
        signs = np.where(change > 0, 1.0, -1.0)
        scale = np.asarray(edit.scale).reshape(*lead, *(1,) * (change.ndim - len(lead)))
        np.testing.assert_allclose(
            edit.dense(jnp.zeros(change.shape), jnp.float32), scale * signs, rtol=1e-6
        )  # of 0: -1


def test_the_scale_is_the_best_there_is():
    """The mean size leaves the smallest squared error of all scales (Liu et al. 2024, section 3.1)."""
    edit = made()["layers/q"]
    change = np.asarray(tuned()["layers"]["q"] - base()["layers"]["q"])

    def error(by):
        there = np.asarray(edit.replace(scale=edit.scale * by).dense(jnp.zeros(change.shape), jnp.float32))
        return ((there - change) ** 2).sum()

    assert error(1.0) < min(error(0.98), error(1.02))


def test_what_is_no_matrix_of_a_block_is_kept_as_it_is():
    found = made()
    for path in ("layers/norm", "embed"):
        assert isinstance(found[path], Dense) and found[path].fixed == ("dw",)
        after = trees.flatten(delta.fold(base(), {path: found[path]}))[path]
        np.testing.assert_allclose(after, trees.flatten(tuned())[path], rtol=1e-6)
    assert isinstance(made(targets=("embed", "q", "up"))["embed"], OneBit)


def test_what_was_not_tuned_costs_nothing():
    assert made(tuned(("layers/q",))).keys() == {"layers/q"}
    assert made(base()) == {}


def test_a_bias_that_was_filled_stays_one():
    fine = tuned()
    fine["layers"]["q_bias"] = jnp.ones((2, 3, 2))
    assert isinstance(made(fine)["layers/q_bias"], Insert)


def test_bound_and_quantised_models_are_what_they_stand_for():
    packed = quant.quantise_tree(base(), SPECS, quant.Int8(), ("q", "up"))
    change = {"layers/q": Dense(numbers(np.random.default_rng(0), FLAT["layers/q"].shape))}
    found = made(delta.bind(packed, change), packed)
    assert found.keys() == {"layers/q"}
    np.testing.assert_allclose(found["layers/q"].scale, jnp.mean(jnp.abs(change["layers/q"].dw), (1, 2, 3)), rtol=1e-4)


def test_specs_are_of_what_is_made():
    """Shapes and types of the one are those of the other, and only scales are trained."""
    specs = one_bit_specs(SPECS)
    whole = params.abstract(specs)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), {path: whole[path] for path in CHANGED})
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), made())
    trained = jax.tree.leaves(delta.partition(specs)[0])
    assert sorted(spec.shape for spec in trained) == [(2,), (2, 3)]


def test_no_matrix_of_signs_is_kept_for_the_way_back():
    spec = {"w": ParamSpec((48, 40), ": d : f", normal(1.0))}
    w = quant.quantise_tree(params.init(spec, jax.random.key(0)), spec, quant.Int8(), ("w",))["w"]
    edit = params.init(one_bit_specs(spec, ("w",)), jax.random.key(0))["w"]

    def product(scale, x):
        return delta.einsum("bsd,df->bsf", x, delta.Bound(w, replace(edit, scale=scale)))

    def back(scale, x):
        return jax.vjp(product, scale, x)[1]

    kept = jax.tree.leaves(jax.eval_shape(back, edit.scale, jnp.ones((2, 3, 48))))
    assert not [leaf for leaf in kept if leaf.size >= 48 * 40 and leaf.dtype == jnp.float32]


def test_a_file_holds_all_of_it(tmp_path):
    file = tmp_path / "run" / "one_bit.safetensors"
    found = made()
    write(file, found)
    arrays = load_file(file)
    assert arrays["layers/q.bits"].dtype == np.uint8 and arrays["layers/q.scale"].shape == (2,)
    method = BitDelta(str(file))
    fresh = params.init(method(SPECS), jax.random.key(0))
    again = method.start(fresh, delta.Given(base(), jax.random.key(0)))
    assert again.keys() == method(SPECS).keys()
    for path in CHANGED:
        jax.tree.map(np.testing.assert_array_equal, again[path], found[path])
    jax.tree.map(np.testing.assert_array_equal, delta.fold(base(), again), delta.fold(base(), found))
    assert jax.tree.structure(BitDelta().start(fresh, delta.Given(base(), jax.random.key(0)))) == jax.tree.structure(
        fresh
    )


@pytest.mark.parametrize(
    "arrays, text",
    [
        ({"layers/q.bits": np.zeros((2, 1, 3, 2), np.uint8)}, "layers/q.scale is not there instead of"),
        ({"layers/norm.dw": np.zeros((2, 5), np.float32)}, r"layers/norm.dw is \(2, 5\) instead of \(2, 4\)"),
        ({"layers/k.scale": np.zeros(2, np.float32)}, "the model has no place for layers/k.scale"),
    ],
)
def test_a_file_over_another_base_is_refused(arrays, text, tmp_path):
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(Fault, match=text):
        filled(params.init(one_bit_specs(SPECS), jax.random.key(0)), tmp_path / "x.safetensors")


def test_a_file_that_is_gone_is_said(tmp_path):
    with pytest.raises(Fault, match="cannot be read as a one-bit delta"):
        filled(params.init(one_bit_specs(SPECS), jax.random.key(0)), tmp_path / "gone.safetensors")
