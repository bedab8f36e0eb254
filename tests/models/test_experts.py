# SPDX-License-Identifier: Apache-2.0
"""Rows are sorted by expert and find their way back."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.models.experts import by_expert


@pytest.mark.parametrize("count", [1, 4, 9])
def test_rows_by_expert(count):
    expert = np.random.default_rng(count).integers(0, count, 20).astype(np.int32)
    order, place, sizes = (np.asarray(x) for x in by_expert(jnp.asarray(expert), count))
    np.testing.assert_array_equal(order, np.argsort(expert, kind="stable"))
    np.testing.assert_array_equal(order[place], np.arange(20))
    np.testing.assert_array_equal(sizes, np.bincount(expert, minlength=count))
