# SPDX-License-Identifier: Apache-2.0
"""Paths, patterns, halves and the summary."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxpost import trees
from jaxpost.delta import Scale
from jaxpost.faults import Fault

TREE = {"embed": 1, "layers": {"attn": {"q": 2, "q_bias": None}, "mlp": {"up": 3}}, "norm": 4}


def test_flatten_names_every_place_in_order():
    assert list(trees.flatten(TREE).items()) == [
        ("embed", 1),
        ("layers/attn/q", 2),
        ("layers/attn/q_bias", None),
        ("layers/mlp/up", 3),
        ("norm", 4),
    ]
    assert trees.unflatten(trees.flatten(TREE)) == TREE


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("q", ["layers/attn/q"]),
        ("layers/*", ["layers/attn/q", "layers/attn/q_bias", "layers/mlp/up"]),
        ("layers/*/q", ["layers/attn/q"]),
        ("attn/*", ["layers/attn/q", "layers/attn/q_bias"]),
        ("*_bias", ["layers/attn/q_bias"]),
        ("norm", ["norm"]),
        ("*", list(trees.flatten(TREE))),
        ("[eu]*", ["embed", "layers/mlp/up"]),
    ],
)
def test_patterns(pattern, found):
    assert list(trees.select(trees.flatten(TREE), [pattern])) == found


def test_select_keeps_the_order_of_the_tree_and_names_each_path_once():
    assert trees.select(trees.flatten(TREE), ["norm", "q", "layers/*"]) == (
        "layers/attn/q",
        "layers/attn/q_bias",
        "layers/mlp/up",
        "norm",
    )


@pytest.mark.parametrize("pattern, offer", [("nrom", "norm"), ("layer/attn/q", "layers/attn/q"), ("Q", "known:")])
def test_a_pattern_that_matches_nothing_is_a_fault(pattern, offer):
    with pytest.raises(Fault, match=f"targets of mine: no parameter matches '{pattern}'.*{offer}"):
        trees.select(trees.flatten(TREE), ["q", pattern], "targets of mine")


def test_partition_leaves_holes():
    keep, rest = trees.partition(TREE, lambda path: "attn" in path)
    assert keep == {"embed": None, "layers": {"attn": {"q": 2, "q_bias": None}, "mlp": {"up": None}}, "norm": None}
    assert rest == {"embed": 1, "layers": {"attn": {"q": None, "q_bias": None}, "mlp": {"up": 3}}, "norm": 4}


def test_a_path_is_the_same_through_dicts_and_fields():
    tree = {"layers/attn/q": Scale(jnp.ones(3)), "head": {"w": (jnp.ones(1),)}}
    paths = [trees.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths == ["head/w/0", "layers/attn/q/s"]
    assert "s" in {field.name for field in dataclasses.fields(Scale)}


def test_summary_tells_shape_type_and_bytes():
    lines = trees.summary({"a": jnp.ones((300, 4), jnp.bfloat16), "b": {"c": jnp.ones(())}, "d": None}).splitlines()
    assert [line.split() for line in lines] == [
        ["a", "300x4", "bfloat16", "2,400", "B"],
        ["b/c", "scalar", "float32", "4", "B"],
    ]
    assert trees.summary({}) == ""
