# SPDX-License-Identifier: Apache-2.0
"""What cuDNN's kernels are asked for, and where they say that they cannot. They themselves need a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.faults import Fault
from jaxpost.kernels.attention import Rows, attention, cudnn
from jaxpost.kernels.attention.api import IMPLEMENTATIONS
from jaxpost.kernels.attention.cudnn import lengths_and_offsets
from jaxpost.kernels.dispatch import Unsupported


def places(lengths: list[int], most: int) -> tuple[list[int], list[int]]:
    """Lengths and starts of one row, written down one segment at a time."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    unused = [-1] * (most - len(lengths))
    return lengths + unused, [*starts, *unused, -1]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=2, max_size=2), st.integers(3, 4))
def test_lengths_and_offsets(rows, most):
    segments = np.zeros((2, 12), np.int32)
    for row, lengths in zip(segments, rows, strict=True):
        numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        row[: len(numbers)] = numbers
    lengths, offsets = lengths_and_offsets(jnp.asarray(segments), most)
    assert lengths.dtype == offsets.dtype == jnp.int32
    for row, given_lengths in enumerate(rows):
        wanted = places(given_lengths, most)
        assert (lengths[row].tolist(), offsets[row].tolist()) == wanted


def call(impl=None, dtype=jnp.bfloat16, size=8, most=1, cap=None):
    q, kv = jnp.ones((1, 2, 2, size), dtype), jnp.ones((1, 2, 1, size), dtype)
    rows = Rows(jnp.ones((1, 2), jnp.int32), jnp.arange(2)[None], most)
    return attention(q, kv, kv, rows, cap=cap, impl=impl)


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(dtype=jnp.float32), "computes in 16 bits, not in float32"),
        (dict(size=12), "head size 12"),
        (dict(size=264), "head size 264"),
        (dict(cap=2.0), "does not squash scores"),
        (dict(most=None), "the number of segments in a row is not known"),
    ],
)
def test_what_it_cannot_serve_it_refuses_with_the_reason(monkeypatch, options, reason):
    monkeypatch.setattr(cudnn, "platform", lambda: "gpu")
    with pytest.raises(Unsupported, match=reason):
        call("cudnn", **options)
    assert call(**options).shape == (1, 2, 2, options.get("size", 8)), "the reference serves it"


def test_it_needs_a_gpu():
    if jax.default_backend() == "cpu":
        with pytest.raises(Unsupported, match="needs an NVIDIA GPU"):
            call("cudnn")
    np.testing.assert_array_equal(call(), call("reference"))


def test_the_reference_is_the_last_resort_and_names_are_checked():
    assert list(IMPLEMENTATIONS) == ["pallas_gpu", "cudnn", "splash", "xla", "reference"]
    with pytest.raises(
        Fault, match="no implementation .triton.; known: cudnn, pallas_gpu, quantised, reference, splash, xla"
    ):
        call("triton")
