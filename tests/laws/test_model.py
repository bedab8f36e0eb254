# SPDX-License-Identifier: Apache-2.0
"""Laws of deltas through a whole decoder."""

import functools
import typing

import jax
import numpy as np
import pytest

from jaxpost import delta, trees
from jaxpost.models import decoder
from jaxpost.models.remat import Remat
from tests.laws.cases import bound, folded, wide
from tests.laws.models import BASES, FAMILIES, STACKS, base_of, batch, join, logits, loss, small, stack_of

REMATS = typing.get_args(Remat)
FILLING = ("inserts", "places")
MODELS = (("float32", False), ("float32", True), ("bfloat16", False), ("int8", True))
EVERY = [(base, tied, "plain", name) for base, tied in MODELS for name in STACKS]
EVERY += [(base, True, family, "all of it") for base in ("float32", "int8") for family in FAMILIES if family != "plain"]
EVERY += [(base, True, "plain", "all of it") for base in ("int4", "nf4", "fp8")]


def config_of(base: str, tied: bool, family: str) -> decoder.Decoder:
    return small(tied, "bfloat16" if base == "bfloat16" else "float32", family)


def test_every_combination_is_tried():
    assert (len(EVERY), len(REMATS)) == (4 * len(STACKS) + 2 * 3 + 3, 7) and {base for base, *_ in EVERY} == set(BASES)
    kinds = {type(edit) for name in STACKS for edits in stack_of(small(), name) for edit in edits.values()}
    assert kinds >= {delta.LowRank, delta.Dense, delta.Scale, delta.Insert, delta.Bottleneck}


@functools.cache
def plain_logits(base: str, tied: bool, family: str) -> jax.Array:
    config = config_of(base, tied, family)
    return logits(config, base_of(config, base), batch())


# What fills a slot is not nothing, not even fresh: a place of a prompt or prefix is attended to whatever stands there.
@pytest.mark.parametrize("base, tied, family, name", [case for case in EVERY if case[3] not in FILLING])
def test_a_fresh_delta_changes_no_logit(base, tied, family, name):
    config = config_of(base, tied, family)
    weights = base_of(config, base)
    stack = [
        {path: edit for path, edit in delta.spread(edits).items() if not isinstance(edit, delta.Insert)}
        for edits in stack_of(config, name, fresh=True, base=weights)
    ]
    found, plain = logits(config, bound(weights, stack), batch()), plain_logits(base, tied, family)
    if family == "plain" and base != "nf4":
        np.testing.assert_array_equal(found, plain)
    else:  # where there is more to fuse, XLA fuses it differently
        assert apart(found, plain) < 1e-6


@pytest.mark.parametrize("base, tied, family, name", EVERY)
def test_bound_and_folded_give_the_same_logits(base, tied, family, name):
    config = config_of(base, tied, family)
    weights, stack = base_of(config, base), stack_of(config, name)
    one, other = (logits(config, join(weights, stack), batch()) for join in (bound, folded))
    assert one.dtype == config.dtype
    assert apart(one, plain_logits(base, tied, family)) > 0.15, "the edits must matter"
    much = 1.5 if name == "all of it" else 1.0  # with adapters, twice as many roundings as any other
    assert apart(one, other) < much * (0.08 if base == "bfloat16" else 5e-6)


def apart(one, other) -> float:
    """How far apart two arrays are, as a share of the first."""
    one, other = wide(one), wide(other)
    return np.linalg.norm(one - other) / np.linalg.norm(one)


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("tied", [False, True])
def test_fold_then_difference_then_fold(tied, name):
    """Over the whole tree: what was inserted comes back as inserted, and places without an edit have none."""
    config = small(tied)
    weights, stack = base_of(config, "float32"), stack_of(config, name)
    fine = folded(weights, stack)
    change = delta.difference(fine, weights)
    assert change.keys() == {path for edits in stack for path in delta.spread(edits)}
    again = delta.fold(weights, change)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), again, fine)
    assert delta.difference(fine, fine) == {}


@functools.cache
def halves(name: str):
    parts = [delta.partition(edits) for edits in stack_of(small(tied=True), name)]
    return [part[0] for part in parts], [part[1] for part in parts]


@functools.cache
def gradients_through(name: str, lay, remat):
    config, (trainable, fixed) = small(tied=True), halves(name)
    weights = base_of(config, "int8")
    value = jax.value_and_grad(lambda t: loss(config, join(weights, t, fixed, lay), batch(), remat))
    return jax.jit(value)(trainable)


@pytest.mark.parametrize("remat, name", [("none", "all of it"), *((remat, "lora") for remat in REMATS)])
def test_gradients_are_those_through_folded_weights(remat, name):
    trainable, _ = halves(name)
    value, gradients = gradients_through(name, delta.bind, remat)
    value_wanted, gradients_wanted = gradients_through(name, delta.fold, "none")
    np.testing.assert_allclose(value, value_wanted, rtol=1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(trainable)
    wanted = dict(jax.tree_util.tree_leaves_with_path(gradients_wanted))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.linalg.norm(leaf) > 1e-6
        assert apart(leaf, wanted[path]) < 1e-4, trees.path_of(path)
