# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode over a cache of keys and values, as pure functions of fixed shapes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Int, Tree
from jaxpost.kernels.attention import Cached, Rows
from jaxpost.models.architecture import blocks
from jaxpost.models.decoder import Decoder, embed, head, rows, trunk
from jaxpost.sample.logits import Sampling, distribution, draw


@struct.dataclass
class Decoding:
    """A batch in the middle of its completions.

    cache: per block (`models.architecture.blocks`) keys and values `[l, b, t, k, h]`; slot i of a row holds the newest
    position that is i modulo t: with a window t is the window, else there is a slot for every position. Segments are 0
    in empty slots.
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
    drawn tokens. Ids below zero are places of a prompt or prefix (`decoder.rows`). Rows of length 0 are done from the
    start."""
    batch, width = tokens.shape
    places = jnp.broadcast_to(jnp.arange(width), (batch, width))
    segments = (places < lengths[:, None]).astype(jnp.int32)
    x = embed(config, weights, tokens)
    hidden, kept = trunk(config, weights, x, rows(tokens, segments, places, most=1), keep=True)
    assert kept is not None
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
    cache = {
        path: _cache(*kept[path], lengths, slots if window is None else min(window, slots))
        for path, window in windows(config).items()
    }
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
        cache={path: _written(cache, new[path], state.position) for path, cache in state.cache.items()},
        logits=head(config, weights, hidden)[:, 0],
        position=state.position + 1,
        done=done,
        keys=state.keys,
        tokens=tokens,
        log_probs=log_probs,
        count=state.count + 1,
    )


def windows(config: Decoder) -> dict[str, int | None]:
    """How many positions each block needs to remember; `None` is all of them."""
    return {path: config.layer(numbers[0]).window for path, numbers in blocks(config).items()}


def _cache(k: Array, v: Array, lengths: Int[Array, "b"], slots: int) -> Cached:
    """A cache of so many slots a row from the keys and values of prompts, of which each row's last ones stay."""
    slot = jnp.arange(slots)[None]
    newest = lengths[:, None] - 1
    positions = newest - (newest - slot) % slots  # negative where the prompt is shorter than the cache
    width = k.shape[2]
    if slots >= width:  # every position has its own slot
        spare = ((0, 0), (0, 0), (0, slots - width), (0, 0), (0, 0))
        k, v = jnp.pad(k, spare), jnp.pad(v, spare)
    else:
        at = jnp.maximum(positions, 0)[None, :, :, None, None]
        k, v = jnp.take_along_axis(k, at, axis=2), jnp.take_along_axis(v, at, axis=2)
    return Cached(k, v, (positions >= 0).astype(jnp.int32), jnp.maximum(positions, 0))


def _written(cache: Cached, new: tuple[Array, Array], position: Int[Array, "b"]) -> Cached:
    """The cache with one token's keys and values of all layers written at once, each row at its own slot. A row that is
    done goes on past the end, where it overwrites what nobody reads."""
    row = jnp.arange(position.shape[0])
    slot = position % cache.segments.shape[1]
    k, v = new
    return cache.replace(  # pyright: ignore[reportAttributeAccessIssue]
        k=cache.k.at[:, row, slot].set(k[:, :, 0]),
        v=cache.v.at[:, row, slot].set(v[:, :, 0]),
        segments=cache.segments.at[row, slot].set(1),
        positions=cache.positions.at[row, slot].set(position),
    )
