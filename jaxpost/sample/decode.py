# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode over a cache of keys and values, as pure functions of fixed shapes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Int, Tree
from jaxpost.kernels.attention import Cached, Rows
from jaxpost.models.decoder import Decoder, embed, head, trunk
from jaxpost.sample.logits import Sampling, distribution, draw


@struct.dataclass
class Decoding:
    """A batch in the middle of its completions.

    cache: keys and values `[l, b, t, k, h]`, slot i of a row holding position i; segments are 0 in empty slots.
    logits `[b, v]` of each row's next token; position `[b]` that it will have; done `[b]`; keys `[b]`, one a row;
    tokens, log_probs `[b, n]` drawn so far, count of them.
    """

    cache: Any
    logits: Any
    position: Any
    done: Any
    keys: Any
    tokens: Any
    log_probs: Any
    count: Any


def prefill(
    config: Decoder,
    weights: Tree,
    tokens: Int[Array, "b p"],
    lengths: Int[Array, "b"],
    keys: Array,
    slots: int,
    room: int,
) -> Decoding:
    """Reads prompts of unequal length, padded on the right, into a cache of `slots` places, with room for `room`
    drawn tokens. Rows of length 0 are done from the start."""
    batch, width = tokens.shape
    places = jnp.broadcast_to(jnp.arange(width), (batch, width))
    segments = (places < lengths[:, None]).astype(jnp.int32)
    x = embed(config, weights, tokens)
    hidden, kept = trunk(config, weights, x, Rows(segments, places, most=1), keep=True)
    assert kept is not None
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
    spare = ((0, 0), (0, 0), (0, slots - width), (0, 0), (0, 0))
    cache = Cached(
        k=jnp.pad(kept[0], spare),
        v=jnp.pad(kept[1], spare),
        segments=jnp.pad(segments, ((0, 0), (0, slots - width))),
        positions=jnp.broadcast_to(jnp.arange(slots), (batch, slots)),
    )
    return Decoding(
        cache=cache,
        logits=head(config, weights, last)[:, 0],
        position=lengths,
        done=lengths == 0,
        keys=keys,
        tokens=jnp.zeros((batch, room), jnp.int32),
        log_probs=jnp.zeros((batch, room), jnp.float32),
        count=jnp.zeros((), jnp.int32),
    )


def decode(
    config: Decoder, weights: Tree, state: Decoding, sampling: Sampling, ends: tuple[int, ...], steps: Array
) -> Decoding:
    """Up to `steps` more tokens a row; fewer when every row is done. A row is done behind one of the `ends`."""
    last = jnp.minimum(state.count + steps, state.tokens.shape[1])

    def unfinished(state: Decoding) -> Array:
        return (state.count < last) & ~jnp.all(state.done)

    return jax.lax.while_loop(unfinished, lambda s: _one(config, weights, s, sampling, ends), state)


def _one(config: Decoder, weights: Tree, state: Decoding, sampling: Sampling, ends: tuple[int, ...]) -> Decoding:
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
    token, log_prob = draw(keys, distribution(state.logits, sampling))
    tokens = state.tokens.at[:, state.count].set(jnp.where(state.done, 0, token))
    log_probs = state.log_probs.at[:, state.count].set(jnp.where(state.done, 0.0, log_prob))
    done = state.done | jnp.isin(token, jnp.array(ends, jnp.int32))

    ones = jnp.ones_like(token)[:, None]
    x = embed(config, weights, token[:, None])
    hidden, new = trunk(config, weights, x, Rows(ones, state.position[:, None]), cached=state.cache, keep=True)
    assert new is not None
    return Decoding(
        cache=_written(state.cache, new, state.position),
        logits=head(config, weights, hidden)[:, 0],
        position=state.position + 1,
        done=done,
        keys=state.keys,
        tokens=tokens,
        log_probs=log_probs,
        count=state.count + 1,
    )


def _written(cache: Cached, new: tuple[Array, Array], slot: Int[Array, "b"]) -> Cached:
    """The cache with one token's keys and values of all layers written at once, each row at its own slot."""
    row = jnp.arange(slot.shape[0])
    k, v = new
    return cache.replace(  # pyright: ignore[reportAttributeAccessIssue]
        k=cache.k.at[:, row, slot].set(k[:, :, 0], mode="drop"),
        v=cache.v.at[:, row, slot].set(v[:, :, 0], mode="drop"),
        segments=cache.segments.at[row, slot].set(1, mode="drop"),
    )
