# SPDX-License-Identifier: Apache-2.0
"""Laws of one weight under any stack of edits, met by an activation."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import delta
from tests.jaxprs import products
from tests.laws.cases import (
    BASES,
    FORMATS,
    KINDS,
    SIZES,
    USES,
    Case,
    applied,
    bound,
    cases,
    exact,
    flat,
    folded,
    slack,
    wide,
)
from tests.laws.models import unbind

ON_WEIGHTS = ("float32", "bfloat16", *FORMATS)
ADDITIVE = ("lora", "rslora16", "dense", "dense16", "one bit")


ELSEWHERE = {delta.Bank, delta.Bottleneck}
"""Have laws of their own: what chooses among edits, and what stands in the stream."""


def test_every_edit_of_the_package_is_tried():
    edits = {c for _, c in inspect.getmembers(delta, inspect.isclass) if hasattr(c, "contract") and c is not delta.Edit}
    edits -= ELSEWHERE
    case = Case("plain", 0, "inserted", tuple(KINDS), "float32", 1.0, 0)
    made = [edits["w"] for edits in case.deltas()]
    assert {type(edit) for edit in (*made, *flat(made))} == edits
    assert (len(edits), len(KINDS), len(BASES), len(USES), len(SIZES)) == (9, 11, 8, 7, 2)


@given(cases(bases=ON_WEIGHTS))
def test_a_fresh_edit_is_the_identity(case):
    base, x = case.params(), case.x()
    fresh = case.deltas(fresh=True)
    plain, edited = case.contract(x, base["w"]), case.contract(x, bound(base, fresh)["w"])
    assert edited.dtype == plain.dtype
    np.testing.assert_array_equal(edited, plain)
    np.testing.assert_array_equal(folded(base, fresh)["w"], delta.dense(base["w"]))


@given(cases())
def test_bound_and_folded_do_what_the_formula_says(case):
    base, deltas, x = case.params(), case.deltas(), case.x()
    whole, size = exact(base, deltas, USES[case.use].dims)
    want, room = applied(case, whole), slack(case, size)
    for weights in (bound(base, deltas), folded(base, deltas)):
        result = case.contract(x, weights["w"])
        assert result.dtype == case.dtype
        assert np.all(np.abs(wide(result) - want) <= room)


@given(cases())
def test_fold_and_unbind_are_the_formula_in_float32(case):
    base, deltas = case.params(), case.deltas()
    whole, size = exact(base, deltas, USES[case.use].dims)
    for weights in (folded(base, deltas), unbind(bound(base, deltas))):
        assert weights["w"].dtype == jnp.float32
        assert np.all(np.abs(wide(weights["w"]) - whole) <= size * 2.0**-20)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, share", [("float32", 0.9), ("bfloat16", 0.5)])
def test_an_edit_left_out_is_noticed(use, kind, dtype, share):
    """The tolerances of these laws can fail: the base alone is far outside them."""
    case = Case(use, 0, "float32", (kind,), dtype, 1.0, 7)
    base, deltas = case.params(), case.deltas()
    whole, size = exact(base, deltas, USES[use].dims)
    off = np.abs(wide(case.contract(case.x(), base["w"])) - applied(case, whole))
    assert np.mean(off > slack(case, size)) > share


@given(cases(most=3), st.integers(0, 3))
def test_stacking_is_associative(case, first):
    """Where the stack is cut into a folded and a bound part does not matter."""
    base, deltas = case.params(), case.deltas()
    first = min(first, len(deltas))
    whole, size = exact(base, deltas, USES[case.use].dims)
    part = bound(base, deltas[:first])
    regrouped = bound(folded(base, deltas[:first]), deltas[first:]), folded(part, deltas[first:])
    for weights in regrouped:
        result = case.contract(case.x(), weights["w"])
        assert np.all(np.abs(wide(result) - applied(case, whole)) <= slack(case, size))


@given(cases(kinds=ADDITIVE, bases=ON_WEIGHTS), st.randoms(use_true_random=False))
def test_additive_edits_commute(case, random):
    base, deltas, x = case.params(), case.deltas(), case.x()
    size = exact(base, deltas, USES[case.use].dims)[1]
    turned = random.sample(deltas, len(deltas))
    one, other = (case.contract(x, bound(base, stack)["w"]) for stack in (deltas, turned))
    assert np.all(np.abs(wide(one) - wide(other)) <= 2 * slack(case, size))


def test_a_scale_does_not_commute_with_a_sum():
    case = Case("plain", 0, "float32", ("dense", "scale out"), "float32", 1.0, 3)
    base, deltas, x = case.params(), case.deltas(), case.x()
    one, other = (case.contract(x, bound(base, stack)["w"]) for stack in (deltas, deltas[::-1]))
    assert not np.allclose(one, other, atol=1e-2)


@pytest.mark.parametrize("use", [use for use in USES if USES[use].spec])
@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "kinds, count",
    [
        (("dense",), 1),
        (("dense", "dense16", "dense"), 1),
        (("lora",), 3),
        (("one bit",), 2),
        (("dense", "lora"), 3),
        (("lora", "dense"), 4),
        (("scale in", "scale out"), 1),
        (("scale out", "dense", "dense"), 3),
    ],
)
def test_number_of_matrix_products(use, base, kinds, count):
    case = Case(use, 0, base, kinds, "float32", 1.0, 0)
    weights = bound(case.params(), case.deltas())
    assert len(products(case.contract, case.x(), weights["w"])) == count


@given(cases(bases=tuple(FORMATS)))
def test_a_quantised_base_under_edits_is_its_dequantised_self(case):
    base, deltas, x = case.params(), case.deltas(), case.x()
    plain = {"w": delta.dense(base["w"])}
    size = exact(base, deltas, USES[case.use].dims)[1]
    one, other = (case.contract(x, bound(weights, deltas)["w"]) for weights in (base, plain))
    assert np.all(np.abs(wide(one) - wide(other)) <= 2 * slack(case, size))


@given(cases(bases=ON_WEIGHTS))
def test_fold_then_difference_gives_the_delta_back(case):
    base, deltas = case.params(), case.deltas()
    fine = folded(base, deltas)
    change = delta.difference(fine, base)
    assert change.keys() == {"w"} and isinstance(change["w"], delta.Dense)
    whole, size = exact(base, deltas, USES[case.use].dims)
    before, old_size = exact(base, [], USES[case.use].dims)
    assert np.all(np.abs(wide(change["w"].dw) - (whole - before)) <= (size + old_size) * 2.0**-21)


@given(cases(bases=("inserted",)))
def test_fold_then_difference_gives_an_insert_back(case):
    fine = folded(case.params(), case.deltas())
    change = delta.difference(fine, case.params())
    assert isinstance(change["w"], delta.Insert)
    np.testing.assert_array_equal(change["w"].value, fine["w"])


@given(cases(bases=ON_WEIGHTS), st.sampled_from(["float32", "bfloat16"]))
def test_difference_then_fold_gives_the_fine_model_back(case, fine_dtype):
    base = case.params()
    fine = {"w": randomly_near(base["w"], case.seed).astype(fine_dtype)}
    again = delta.fold(base, delta.difference(fine, base))
    size = np.abs(wide(fine["w"])) + np.abs(wide(delta.dense(base["w"])))
    assert np.all(np.abs(wide(delta.dense(again["w"])) - wide(fine["w"])) <= size * 2.0**-23)


def randomly_near(w, seed: int) -> jax.Array:
    w = delta.dense(w)
    return w + 0.1 * jax.random.normal(jax.random.key(seed), w.shape)


@settings(max_examples=settings.default.max_examples // 4)  # each compiles two programs
@given(cases(dtypes=("float32",), most=2))
def test_laws_hold_in_a_scan_over_layers(case):
    """Under jit, scan and checkpoint at once: every layer's result is that layer's formula, and every gradient
    (activation, trainable fields) is the one that goes through folded weights."""
    base, deltas, x = case.params(layers=True), case.deltas(layers=True), case.x()
    halves = [delta.partition(edits) for edits in deltas]
    trainable, fixed = [half[0] for half in halves], [half[1] for half in halves]
    floating = jnp.issubdtype(x.dtype, jnp.floating)

    def results(trainable, x, join, scanned):
        weights = join(base, [delta.combine(*pair) for pair in zip(trainable, fixed, strict=True)])
        layer = jax.checkpoint(lambda x, w: case.contract(x, w))
        if scanned:
            return jax.lax.scan(lambda _, w: (None, layer(x, w)), None, weights["w"])[1]
        slices = [jax.tree.map(lambda leaf, i=i: leaf[i], weights["w"]) for i in range(case.size["l"])]
        return jnp.stack([case.contract(x, w) for w in slices])

    shape = jax.eval_shape(lambda: results(trainable, x, bound, True)).shape
    cotangent = jnp.asarray(np.random.default_rng(case.seed).normal(size=shape), jnp.float32)

    def loss(trainable, x, join, scanned):
        y = results(trainable, x, join, scanned)
        return jnp.sum(y * cotangent), y

    wanted = (0, 1) if floating else (0,)
    got = jax.jit(jax.value_and_grad(loss, wanted, has_aux=True), static_argnums=(2, 3))
    ((_, ys), gradients) = got(trainable, x, bound, True)
    ((_, ys_folded), gradients_folded) = got(trainable, x, folded, False)

    for i in range(case.size["l"]):
        one = [jax.tree.map(lambda leaf, i=i: leaf[i], edits) for edits in deltas]
        whole, size = exact(jax.tree.map(lambda leaf, i=i: leaf[i], base), one, USES[case.use].dims)
        assert np.all(np.abs(wide(ys[i]) - applied(case, whole)) <= slack(case, size))
    del ys_folded
    scale = max(1e-30, max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradients_folded)))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_folded), strict=True):
        np.testing.assert_allclose(wide(a) / scale, wide(b) / scale, atol=2**-7 if a.dtype == jnp.bfloat16 else 1e-5)


@settings(max_examples=settings.default.max_examples // 2)
@given(cases(bases=ON_WEIGHTS))
def test_only_what_is_not_fixed_meets_the_gradient(case):
    (edits, *_) = case.deltas()
    trainable, fixed = delta.partition(edits)
    names = [field.name for field in dataclasses.fields(edits["w"])]
    for name in names:
        if name in edits["w"].fixed:
            assert getattr(trainable["w"], name) is None and getattr(fixed["w"], name) is not None
    again = delta.combine(trainable, fixed)
    assert jax.tree.structure(again) == jax.tree.structure(edits)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(edits), strict=True))

    def unevenly(t):  # a plain sum could be blind to signs that cancel
        w = delta.dense(bound(case.params(), [delta.combine(t, fixed)])["w"])
        return jnp.sum(w * jnp.linspace(1.0, 2.0, w.size).reshape(w.shape))

    gradients = jax.grad(unevenly)(trainable)
    assert jax.tree.structure(gradients) == jax.tree.structure(trainable)
    assert all(np.any(wide(leaf)) for leaf in jax.tree.leaves(gradients))
