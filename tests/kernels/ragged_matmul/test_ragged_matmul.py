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
from jaxpost.kernels.ragged_matmul import blocks, ragged_matmul
from jaxpost.kernels.ragged_matmul.api import IMPLEMENTATIONS

# Compiled once for each number of groups: sizes are data.
ROWS = 24
compiled = {
    name: jax.jit(functools.partial(ragged_matmul, impl=name)) for name in IMPLEMENTATIONS
}  # fmt: skip


def looped(x, w, sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    return np.stack([row @ w[g] for row, g in zip(x.astype(float), group, strict=True)])


def inputs(groups, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, 3)).astype(np.float32), rng.normal(size=(groups, 3, 5)).astype(np.float32)


def sizes_of(groups, cuts):
    edges = sorted(cut % (ROWS + 1) for cut in cuts[: groups - 1])
    return np.diff([0, *edges, ROWS]).astype(np.int32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.sampled_from([1, 2, 5, 7, 24, 30]), st.lists(st.integers(0, ROWS), min_size=29, max_size=29), st.integers(0, 9)
)
def test_each_row_meets_its_groups_matrix(impl, groups, cuts, seed):
    x, w = inputs(groups, seed)
    sizes = sizes_of(groups, cuts)
    found = compiled[impl](jnp.asarray(x), jnp.asarray(w), jnp.asarray(sizes))
    np.testing.assert_allclose(found, looped(x, w, sizes), atol=1e-5)


@pytest.mark.parametrize("sizes", [[24, 0, 0, 0, 0], [0, 0, 0, 0, 24], [5, 0, 9, 1, 9]])
def test_gradients_agree(sizes):
    x, w = (jnp.asarray(a) for a in inputs(5))
    upstream = jnp.sin(jnp.arange(ROWS * 5.0)).reshape(ROWS, 5)

    def value(x, w, impl):
        return jnp.sum(ragged_matmul(x, w, jnp.asarray(sizes, jnp.int32), impl) * upstream)

    one, other = (jax.grad(value, (0, 1))(x, w, impl) for impl in ("blocks", "reference"))
    for a, b in zip(one, other, strict=True):
        assert np.linalg.norm(b) > 1
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_copies_of_matrices_are_not_kept_for_the_backward_pass():
    x, w = (jnp.asarray(a) for a in inputs(5))
    sizes = jnp.asarray([5, 0, 9, 1, 9], jnp.int32)
    _, pullback = jax.vjp(lambda x: ragged_matmul(x, w, sizes, "blocks"), x)
    assert max(leaf.size for leaf in jax.tree.leaves(pullback)) <= max(x.size, w.size)


def test_padding_at_most_doubles_the_rows_and_the_matrices():
    for rows in (1, 7, 64, 1000):
        for groups in (1, 3, 8, 128):
            block = blocks.block_rows(rows, groups)
            count = rows if block == 1 else rows // block + min(groups, rows)
            assert count * block <= 2 * rows + 1 and count <= max(rows, 3 * groups)


def test_a_tpu_has_its_own(monkeypatch):
    monkeypatch.setattr(blocks, "platform", lambda: "tpu")
    x, w = (jnp.asarray(a) for a in inputs(2))
    with pytest.raises(Unsupported, match="a TPU multiplies groups by itself"):
        ragged_matmul(x, w, jnp.asarray([20, 4]), "blocks")
    np.testing.assert_allclose(ragged_matmul(x, w, jnp.asarray([20, 4])), looped(*inputs(2), [20, 4]), atol=1e-5)
