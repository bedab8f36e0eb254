# SPDX-License-Identifier: Apache-2.0
"""Merges of several deltas: what each promises, and what PEFT makes of the same factors."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import delta, params
from jaxpost.delta import Dense, Insert, LowRank, Scale, algebra
from jaxpost.delta.adapter import Bottleneck
from jaxpost.delta.encoders import Encoder
from jaxpost.delta.merges import Merge, agreed, dropped, largest, nearest, nearest_to_product
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, normal
from tests.conftest import ROOT
from tests.delta.drawn import EVERY, FLAT, MATRICES, SPECS, change, close, drawn, numbers

FEW = settings(max_examples=5)
seeds = st.integers(0, 2**16)
alike = st.lists(st.sampled_from(EVERY).map(lambda kind: dict.fromkeys(MATRICES, kind)), min_size=1, max_size=2)
weights = st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3)


def several(chosen, seed):
    return [drawn(some, seed + i) for i, some in enumerate(chosen)]


def weighted(deltas, by):
    parts = [change(some) for some in deltas]
    return {path: sum(w * part[path] for w, part in zip(by, parts, strict=True)) for path in FLAT}


@FEW
@given(alike, weights, seeds)
def test_cat_is_the_weighted_sum(chosen, by, seed):
    deltas, by = several(chosen, seed), by[: len(chosen)]
    close(change(Merge("cat", tuple(by))(deltas, SPECS)), weighted(deltas, by))


def matrices(path, change):
    """One weight's change as matrices, its lead axes taken as one."""
    lead, inner, outer = (int(np.prod(FLAT[path].sizes(group))) for group in range(3))
    return change.reshape(lead, inner, outer)


@FEW
@given(alike, weights, st.integers(1, 3), seeds)
def test_svd_is_the_nearest_of_its_rank(chosen, by, rank, seed):
    """By the theorem of Eckart and Young: what is left over is what the smaller singular values say."""
    deltas, by = several(chosen, seed), by[: len(chosen)]
    made = Merge("svd", tuple(by), rank)(deltas, SPECS)
    found, wanted = change(made), weighted(deltas, by)
    for path in MATRICES:
        assert isinstance(made[path], LowRank) and made[path].a.shape[-1] <= rank
        for one, other in zip(matrices(path, found[path]), matrices(path, wanted[path]), strict=True):
            rest = np.linalg.svd(other, compute_uv=False)[rank:]
            np.testing.assert_allclose(np.linalg.norm(one - other), np.linalg.norm(rest), atol=1e-4)
    for path in ("layers/norm", "layers/q_bias"):  # no matrices, and summed exactly
        np.testing.assert_allclose(found[path], wanted[path], atol=1e-5)


@pytest.mark.parametrize("shape, ranks", [((40, 30), (3, 4)), ((5, 30), (4, 4)), ((30, 5), (9,))])
def test_small_factors_are_merged_without_their_product(shape, ranks):
    rng = np.random.default_rng(0)
    a, b = numbers(rng, (shape[0], sum(ranks))), numbers(rng, (sum(ranks), shape[1]))
    one, other = nearest_to_product(a, b, 2), nearest(a @ b, 2)
    np.testing.assert_allclose(one[0] @ one[1], other[0] @ other[1], atol=1e-4)
    if min(shape) > sum(ranks):
        jaxpr = str(jax.make_jaxpr(lambda a, b: nearest_to_product(a, b, 2))(a, b))
        assert f"f32[{shape[0]},{shape[1]}]" not in jaxpr


@pytest.mark.parametrize("how", ["ties", "dare", "dare_ties", "magnitude"])
def test_all_of_one_delta_kept_is_that_delta(how):
    made = drawn({"embed": "lora", "layers/q": "both", "layers/up": "bits"}, 0)
    close(change(Merge(how, density=1.0)([made], SPECS)), change(made))


@settings(max_examples=6)
@given(st.sampled_from([7, 40]), st.sampled_from([0.01, 0.3, 1.0]), seeds)
def test_the_largest_are_kept_as_they_are(size, density, seed):
    x = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    found = np.asarray(largest(jnp.asarray(x), density))
    kept = found != 0
    assert kept.sum() == int(density * size)
    np.testing.assert_array_equal(found[kept], x[kept])
    assert not kept.any() or np.abs(x[kept]).min() >= np.abs(x[~kept]).max(initial=0.0)


def test_dropping_leaves_the_mean():
    x = jnp.full((200, 200), 3.0)
    found = np.asarray(dropped(jax.random.key(0), x, 0.2))
    assert set(np.unique(found)) == {0.0, 15.0} and abs(found.mean() - 3.0) < 0.1


def test_the_sign_that_most_weight_has_is_elected():
    changes = jnp.asarray([[3.0, 1.0, 0.0, -2.0], [-1.0, -1.0, 0.0, 1.0], [-1.0, 2.0, 5.0, 1.5]])
    ones = jnp.ones((3, 1))
    np.testing.assert_allclose(agreed(changes, ones, "total"), [3.0, 1.5, 5.0, 1.25])
    np.testing.assert_allclose(agreed(changes, ones, "frequency"), [-1.0, 1.5, 5.0, 1.25])
    by = jnp.asarray([[1.0], [2.0], [4.0]])  # after the election, and not part of what is divided by
    np.testing.assert_allclose(agreed(changes, by, "total"), [3.0, 4.5, 20.0, 4.0])


def test_each_layer_is_merged_by_itself():
    """A layer of large numbers takes nothing from one of small numbers."""
    spec = {"layers": {"w": ParamSpec((2, 3, 4), "l : d : f", normal(1.0))}}
    dw = numbers(np.random.default_rng(0), (2, 3, 4)) * jnp.asarray([1.0, 100.0]).reshape(2, 1, 1)
    found = Merge("magnitude", density=0.5)([{"layers/w": Dense(dw)}], spec)["layers/w"].dw
    assert [int((np.asarray(layer) != 0).sum()) for layer in found] == [6, 6]


def test_a_rank_makes_factors_of_what_is_left():
    deltas = several([dict.fromkeys(MATRICES, "dense")] * 2, 0)
    whole, factored = Merge("ties", rank=0)(deltas, SPECS), Merge("ties", rank=3)(deltas, SPECS)
    assert {type(whole[path]) for path in MATRICES} == {Dense} and isinstance(whole["layers/q_bias"], Insert)
    assert {type(factored[path]) for path in MATRICES} == {LowRank}
    wanted, found = change(whole), change(factored)
    for path in MATRICES:
        for one, other in zip(matrices(path, found[path]), matrices(path, wanted[path]), strict=True):
            rest = np.linalg.svd(other, compute_uv=False)[3:]
            np.testing.assert_allclose(np.linalg.norm(one - other), np.linalg.norm(rest), atol=1e-4)


def test_chance_has_a_seed():
    deltas = several([{"embed": "dense"}], 0)
    one, again, other = (Merge("dare", seed=seed)(deltas, SPECS)["embed"].dw for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "merge, deltas, text",
    [
        (
            Merge(),
            [{"embed": "dense"}, {"embed": "dense", "layers/q": "lora"}],
            "only some of the deltas change layers/q",
        ),
        (Merge("cat", (1.0,)), [{"embed": "dense"}] * 2, "2 deltas and 1 weights"),
        (Merge("cat", (1.0, math.nan)), [{"embed": "dense"}] * 2, "the weights are 1.0, nan; each must be a number"),
        (Merge("ties", rank=-1), [{"embed": "lora"}], "rank is -1; give one of at least 1, or 0"),
        (Merge("svd"), [{"embed": "lora"}], "rank is 0; svd makes an update of a rank"),
        (Merge("svd", rank=5), [{"embed": "lora"}], "rank is 5, and the matrices of 'embed' have 4 at most"),
        (Merge("ties", density=0.0), [{"embed": "lora"}], "density is 0.0; it is the share that is kept"),
    ],
)
def test_what_cannot_be_merged(merge, deltas, text):
    with pytest.raises(Fault, match=text):
        merge([drawn(some, 0, others=False) for some in deltas], SPECS)


@pytest.mark.parametrize("how", ["cat", "ties"])
def test_what_is_no_change_of_a_weight(how):
    with pytest.raises(Fault, match="'layers/q' is edited by a Scale"):
        Merge(how)([{"layers/q": Scale(jnp.ones((2, 1, 3, 2)))}], SPECS)
    adapter = Bottleneck(*(jnp.ones(shape) for shape in ((4, 2), (2,), (2, 4), (4,))))
    with pytest.raises(Fault, match="'layers/adapter' is a Bottleneck, which stands beside the weights"):
        algebra.scale({"layers/adapter": adapter}, 2.0)
    encoder = Encoder(jnp.ones((3, 2)), (), ({"w": jnp.ones((2, 4)), "b": jnp.ones(4)},))
    with pytest.raises(Fault, match="'prompt' is an Insert: only biases"):  # what a network writes
        Merge(how)([{"encoder": encoder}], {**SPECS, "prompt": FLAT["embed"]})
    with pytest.raises(Fault, match="there is no delta to merge"):
        Merge(how)([], SPECS)


# --- PEFT

FILE = ROOT / "tests" / "golden" / "merges.json"


@pytest.fixture(scope="module")
def golden():
    return json.loads(FILE.read_text())


def peft_deltas(golden):
    """Its adapters as deltas of a weight `in x out`: A is `r x in` there, B `out x r`."""
    return [
        {"w": LowRank(jnp.asarray(one["a"]).T, jnp.asarray(one["b"]).T, jnp.float32(one["scale"]))}
        for one in golden["adapters"]
    ]


@pytest.mark.parametrize("name", ["cat", "svd", "ties total", "ties frequency", "magnitude", "ties rank 3"])
def test_merges_are_those_of_peft(golden, name):
    case = golden["merges"][name]
    spec = {"w": ParamSpec(tuple(golden["shape"]), ": d : f", normal(1.0))}
    merge = Merge(weights=tuple(golden["weights"]), **case["of"])
    made = merge(peft_deltas(golden), spec)
    found = delta.fold(jax.tree.map(jnp.zeros_like, params.init(spec, jax.random.key(0))), made)["w"]
    np.testing.assert_allclose(found, np.asarray(case["change"]).T, atol=1e-6 * np.abs(case["change"]).max())


def test_a_linear_mix_of_factors_is_another_thing(golden):
    """Why it is not offered: how far it is from the weighted sum."""
    exact, mixed = (np.asarray(golden["merges"][name]["change"]) for name in ("cat", "linear"))
    assert np.linalg.norm(mixed - exact) > 0.2 * np.linalg.norm(exact)
