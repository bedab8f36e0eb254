# SPDX-License-Identifier: Apache-2.0
"""Rows are laid out by group and find their way back."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.kernels.ragged_matmul import grouped, layout


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.sampled_from([None, 1, 2, 8]))
def test_rows_by_group(group, block):
    groups = grouped(jnp.asarray(group, jnp.int32), 6, block)
    source, place, sizes = (np.asarray(x) for x in (groups.source, groups.place, groups.sizes))
    np.testing.assert_array_equal(source[place], np.arange(len(group)))
    assert sorted(source[source < len(group)]) == list(range(len(group))), "each row stands once"
    assert not np.any(sizes % groups.block) and len(source) % groups.block == 0 and sizes.sum() <= len(source)
    of_place = np.repeat(np.arange(6), sizes)
    np.testing.assert_array_equal(of_place[place], group)
    np.testing.assert_array_equal(np.asarray(groups.of_place)[place], group)
    assert all(np.all(np.diff(place[np.array(group) == g]) > 0) for g in range(6)), "in their order"


def test_a_row_may_stand_for_several():
    x = jnp.arange(6.0).reshape(3, 2)  # each of the three twice
    groups = grouped(jnp.array([1, 0, 1, 1, 0, 2], jnp.int32), 3, 2)
    laid = np.asarray(groups.lay(x, 2))
    np.testing.assert_array_equal(laid[np.asarray(groups.place)], np.repeat(x, 2, axis=0))
    assert not laid[np.asarray(groups.source) == 6].any(), "zeros where there is no row"


@pytest.mark.parametrize("rows", [1, 7, 64, 1000, 2047])
@pytest.mark.parametrize("count", [1, 3, 8, 128])
def test_padding_at_most_doubles_the_rows_and_triples_the_matrices(rows, count):
    groups = grouped(jnp.zeros(rows, jnp.int32), count)
    places = groups.source.shape[0]
    assert places <= 2 * rows + 1 and places // groups.block <= max(rows, 3 * count)


def test_a_tpu_needs_no_blocks(monkeypatch):
    monkeypatch.setattr(layout, "platform", lambda: "tpu")
    groups = grouped(jnp.asarray([1, 0, 1, 1], jnp.int32), 2)
    assert groups.block == 1 and groups.source.shape == (4,) and groups.sizes.tolist() == [1, 3]
