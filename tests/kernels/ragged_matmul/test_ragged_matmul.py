# SPDX-License-Identifier: Apache-2.0
"""Grouped products against a loop over the rows, for every implementation, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.kernels.dispatch import Unsupported
from jaxpost.kernels.ragged_matmul import blocks, grouped, ragged_matmul
from jaxpost.kernels.ragged_matmul.api import IMPLEMENTATIONS

ROWS = 24


@functools.partial(jax.jit, static_argnums=(3, 4))
def product(x, w, group, impl=None, block=None):
    groups = grouped(group, w.shape[0], block)
    return ragged_matmul(groups.lay(x), w, groups, impl)[groups.place]


def looped(x, w, group):
    return np.stack([row @ w[g] for row, g in zip(np.asarray(x, float), group, strict=True)])


def inputs(count, seed=0):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(ROWS, 3)), rng.normal(size=(count, 3, 5))
    return (
        jnp.asarray(x, jnp.float32),
        jnp.asarray(w, jnp.float32),
        jnp.asarray(rng.integers(0, count, ROWS), jnp.int32),
    )


@pytest.mark.parametrize("impl, block", [("blocks", None), ("blocks", 1), ("blocks", 4), ("reference", None)])
@settings(max_examples=30)
@given(count=st.sampled_from([1, 2, 5, 30]), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_each_row_meets_its_groups_matrix(impl, block, count, seed, share):
    x, w, group = inputs(count, seed)
    group = jnp.where(jnp.arange(ROWS) < share * ROWS, count - 1, group)  # one group may have most of the rows
    np.testing.assert_allclose(product(x, w, group, impl, block), looped(x, w, np.asarray(group)), atol=1e-5)


def test_every_implementation_is_tried():
    assert list(IMPLEMENTATIONS) == ["blocks", "reference"]


@pytest.mark.parametrize("block", [None, 1, 8])
def test_gradients_agree(block):
    x, w, group = inputs(5)
    upstream = jnp.sin(jnp.arange(ROWS * 5.0)).reshape(ROWS, 5)

    def value(x, w, impl):
        return jnp.sum(product(x, w, group, impl, block) * upstream)

    one, other = (jax.grad(value, (0, 1))(x, w, impl) for impl in ("blocks", "reference"))
    for a, b in zip(one, other, strict=True):
        assert np.linalg.norm(b) > 1
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_copies_of_matrices_are_not_kept_for_the_backward_pass():
    x, w, group = inputs(5)
    groups = grouped(group, 5)
    _, pullback = jax.vjp(lambda x: ragged_matmul(x, w, groups, "blocks"), groups.lay(x))
    assert max(leaf.size for leaf in jax.tree.leaves(pullback)) <= groups.source.size * 3


def test_a_tpu_has_its_own(monkeypatch):
    monkeypatch.setattr(blocks, "platform", lambda: "tpu")
    x, w, group = inputs(2)
    groups = grouped(group, 2)
    with pytest.raises(Unsupported, match="a TPU multiplies groups by itself"):
        ragged_matmul(groups.lay(x), w, groups, "blocks")
    found = ragged_matmul(groups.lay(x), w, groups)[groups.place]
    np.testing.assert_allclose(found, looped(x, w, np.asarray(group)), atol=1e-5)


def test_many_blocks_of_one_group_are_added_up_in_float32():
    """The gradient of a 16-bit matrix is rounded once, however its rows were cut."""
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(512, 8)), jnp.bfloat16), jnp.asarray(rng.normal(size=(4, 8, 8)), jnp.bfloat16)
    upstream = jnp.asarray(rng.normal(size=(512, 8)), jnp.bfloat16)
    group = jnp.full(512, 2, jnp.int32)
    found = jax.vjp(lambda w: product(x, w, group, "blocks", 4), w)[1](upstream)[0][2]
    exact = np.asarray(x, np.float64).T @ np.asarray(upstream, np.float64)
    error = np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact)
    assert error < 5e-3, "rounded where each block ends and once at the end; in 16 bits all along it is 0.015"
