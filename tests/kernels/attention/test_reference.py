# SPDX-License-Identifier: Apache-2.0
"""Attention in plain jnp against loops, and what must hold of any implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.kernels.attention import Rows, attention

SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6]], np.int32)
ROWS = Rows(jnp.asarray(SEGMENTS), jnp.asarray(POSITIONS))
reference = functools.partial(attention, impl="reference")


def inputs(heads: int = 4, kv_heads: int = 2, size: int = 3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, 7, n, size) for n in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def oracle(q, k, v, segments=SEGMENTS, positions=POSITIONS, window=99, scale=None, cap=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, s, n in np.ndindex(q.shape[:3]):
        own = n // (q.shape[2] // k.shape[2])
        back = [int(positions[b, s] - positions[b, t]) for t in range(k.shape[1])]
        seen = [t for t in range(k.shape[1]) if segments[b, t] == segments[b, s] and 0 <= back[t] < window]
        scores = np.array([q[b, s, n] @ k[b, t, own] for t in seen]) * (scale or 1 / np.sqrt(q.shape[3]))
        scores = np.tanh(scores / cap) * cap if cap else scores
        weights = np.exp(scores - scores.max())
        out[b, s, n] = sum(w * v[b, t, own] for w, t in zip(weights / weights.sum(), seen, strict=True))
    return out


REAL = SEGMENTS > 0


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (4, 4), (4, 1), (1, 1)])
def test_it_is_attention_within_segments(heads, kv_heads):
    q, k, v = inputs(heads, kv_heads)
    np.testing.assert_allclose(np.asarray(reference(q, k, v, ROWS))[REAL], oracle(q, k, v)[REAL], atol=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_are_repeated_keys(kv_heads):
    q, k, v = inputs(4, kv_heads)
    repeated = [jnp.repeat(x, 4 // kv_heads, axis=2) for x in (k, v)]
    np.testing.assert_allclose(reference(q, k, v, ROWS), reference(q, *repeated, ROWS), atol=1e-6)


def test_no_gradient_crosses_a_segment_or_goes_back_in_time():
    q, k, v = inputs()
    reach_of = jax.jit(jax.grad(lambda k, v, b, s: jnp.sum(reference(q, k, v, ROWS)[b, s]), (0, 1)))
    for b, s in np.argwhere(REAL):
        gradients = reach_of(k, v, b, s)
        reach = np.any(np.asarray(gradients[1]) != 0, axis=(2, 3))
        seen = (SEGMENTS[b] == SEGMENTS[b, s]) & (POSITIONS[b] <= POSITIONS[b, s])
        np.testing.assert_array_equal(reach[b], seen)
        assert not reach[1 - b].any()
        assert not np.any(np.asarray(gradients[0])[b][~seen])


def test_packed_rows_are_the_examples_alone():
    q, k, v = inputs()
    packed = reference(q, k, v, ROWS)
    for start, end in [(0, 3), (3, 5)]:
        one = Rows(jnp.ones((1, end - start), jnp.int32), jnp.arange(end - start)[None])
        alone = reference(*(x[:1, start:end] for x in (q, k, v)), one)
        np.testing.assert_allclose(packed[:1, start:end], alone, atol=1e-6)


def test_padding_is_finite_and_so_are_its_gradients():
    q, k, v = inputs()
    rows = Rows(jnp.zeros((2, 7), jnp.int32), jnp.zeros((2, 7), jnp.int32))
    out, gradients = jax.value_and_grad(lambda q: jnp.sum(reference(q, k, v, rows)))(q)
    assert np.isfinite(out) and np.all(np.isfinite(gradients))


def test_large_scores_stay_finite():
    q, k, v = inputs()
    out, gradients = jax.value_and_grad(lambda q: jnp.sum(reference(q, 1e4 * k, v, ROWS)))(1e4 * q)
    assert np.isfinite(out) and np.all(np.isfinite(gradients))


def test_sixteen_bits_come_out_as_they_went_in_with_softmax_in_32():
    q, k, v = inputs(dtype=jnp.bfloat16)
    out = reference(q, k, v, ROWS)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64)[REAL], oracle(q, k, v)[REAL], atol=0.03)
    program = str(jax.make_jaxpr(lambda q: reference(q, k, v, ROWS))(q))
    assert " = exp" in program and not any(" = exp" in line and "bf16" in line for line in program.splitlines())


@pytest.mark.parametrize(
    "options", [dict(window=1), dict(window=3), dict(scale=0.7), dict(cap=0.5), dict(window=2, cap=1.0)]
)
def test_windows_scales_and_caps(options):
    q, k, v = inputs()
    found = np.asarray(reference(q, k, v, ROWS, **options))
    np.testing.assert_allclose(found[REAL], oracle(q, k, v, **options)[REAL], atol=1e-6)
    assert np.abs(found - np.asarray(reference(q, k, v, ROWS)))[REAL].max() > 0.05, "it matters here"
