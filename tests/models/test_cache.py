# SPDX-License-Identifier: Apache-2.0
"""Decoding with a cache of keys and values gives what one pass over everything gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import params as parameters
from jaxpost import trees
from jaxpost.kernels.attention import Rows
from jaxpost.kernels.decode_attention import Cached
from jaxpost.models.decoder import Decoder, embed, head, specs, trunk

CONFIG = Decoder(vocab=40, d=24, layers=3, heads=4, kv_heads=2, head_size=8, ffn=40)
TOTAL = 12
PROMPTS = np.array([5, 1, 8])  # unequal, padded on the right


@pytest.fixture(scope="module")
def weights():
    flat = trees.flatten(parameters.init(specs(CONFIG), jax.random.key(0)))
    return trees.unflatten({p: x if x is None or "norm" in p else 8 * x for p, x in flat.items()})


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab, (len(PROMPTS), TOTAL)))


@jax.jit
def step(weights, tokens, rows, cached):
    hidden, kept = trunk(CONFIG, weights, embed(CONFIG, weights, tokens), rows, cached, keep=True)
    return head(CONFIG, weights, hidden), kept


@pytest.fixture(scope="module")
def expected(weights):
    whole = Rows(jnp.ones(TOKENS.shape, jnp.int32), jnp.tile(jnp.arange(TOTAL), (len(PROMPTS), 1)))
    return np.asarray(step(weights, TOKENS, whole, None)[0])


def empty(batch, capacity):
    """A cache of nothing, with values that would show if they were seen."""
    kv = jnp.full((CONFIG.layers, batch, CONFIG.kv_heads, capacity, CONFIG.head_size), 1e3)
    none = jnp.zeros(batch, jnp.int32)
    return {"layers": Cached(kv, kv, none, none, layer=np.arange(CONFIG.layers))}


def write(cached, kept, rows):
    """The new entries at their positions, for real tokens; padding goes nowhere."""
    cached, kept = cached["layers"], kept["layers"]
    batch = jnp.arange(rows.positions.shape[0])[:, None]
    at = jnp.where(rows.segments > 0, rows.positions, cached.k.shape[3])

    def put(into, new):
        return jnp.swapaxes(jnp.swapaxes(into, 2, 3).at[:, batch, at].set(new, mode="drop"), 2, 3)

    count = cached.count + jnp.sum(rows.segments > 0, axis=1, dtype=jnp.int32)
    written = Cached(put(cached.k, kept[0]), put(cached.v, kept[1]), cached.start, count, layer=cached.layer)
    return {"layers": written}


def test_token_by_token_from_unequal_prompts(weights, expected):
    longest, batch = int(PROMPTS.max()), len(PROMPTS)
    real = np.arange(longest) < PROMPTS[:, None]
    rows = Rows(jnp.asarray(real, jnp.int32), jnp.asarray(np.arange(longest) * real, jnp.int32))
    found, kept = step(weights, TOKENS[:, :longest] * real, rows, None)
    np.testing.assert_allclose(found[real], expected[:, :longest][real], rtol=0, atol=1e-5)
    assert kept["layers"][0].shape == (CONFIG.layers, batch, longest, CONFIG.kv_heads, CONFIG.head_size)
    cached = write(empty(batch, TOTAL), kept, rows)
    at = jnp.asarray(PROMPTS)
    steps = TOTAL - longest
    for _ in range(steps):
        rows = Rows(jnp.ones((batch, 1), jnp.int32), at[:, None])
        found, kept = step(weights, jnp.take_along_axis(TOKENS, at[:, None], axis=1), rows, cached)
        np.testing.assert_allclose(found[:, 0], expected[np.arange(batch), at], rtol=0, atol=1e-5)
        cached = write(cached, kept, rows)
        at = at + 1
    assert steps == 4 and at.tolist() == [9, 5, 12]


@pytest.mark.parametrize("chunk", [1, 4])
def test_in_chunks_from_nothing(weights, expected, chunk):
    cached = empty(len(PROMPTS), TOTAL)
    for start in range(0, TOTAL, chunk):
        positions = jnp.tile(jnp.arange(start, start + chunk), (len(PROMPTS), 1))
        rows = Rows(jnp.ones_like(positions), positions)
        found, kept = step(weights, TOKENS[:, start : start + chunk], rows, cached)
        np.testing.assert_allclose(found, expected[:, start : start + chunk], rtol=0, atol=1e-5)
        cached = write(cached, kept, rows)


def test_nothing_is_kept_unasked(weights):
    rows = Rows(jnp.ones(TOKENS.shape, jnp.int32), jnp.tile(jnp.arange(TOTAL), (len(PROMPTS), 1)))
    assert trunk(CONFIG, weights, embed(CONFIG, weights, TOKENS), rows)[1] is None
