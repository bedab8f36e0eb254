# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode over a cache of keys and values, as pure functions of fixed shapes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Bool, Int, Key, Tree
from jaxpost.kernels.attention import Rows
from jaxpost.kernels.decode_attention import KV, Cached, Entries, empty, stored
from jaxpost.models.architecture import blocks
from jaxpost.models.decoder import Decoder, embed, head, rows, trunk
from jaxpost.sample.apart import kept_apart
from jaxpost.sample.logits import Sampling, draw, gumbels, scores
from jaxpost.shard import constrain

LOOK = 4  # steps between two looks at whether all rows are done: a loop whose end is not known waits for the device


@struct.dataclass
class Prefilled:
    """Prompts that were read: per block (`models.architecture.blocks`) the entries `[l, b, k, s, h]` of their tokens,
    the logits `[b, v]` of what comes next, and their lengths `[b]`."""

    kv: Any
    logits: Any
    lengths: Any


@struct.dataclass
class Decoding:
    """Rows in the middle of their completions, of which each may be at another token of its own.

    kv: per block the entries `[l, b, k, t, h]` that its layers remember, a ring of t places: with a window t is the
    window, else there is a place for every position. All rows write at the same one, `clock` modulo t, so that a step
    writes one slice: a row's newest token stands right behind the clock, whenever the row began, and its older ones
    behind that.
    logits `[b, v]` of each row's next token; position `[b]` that it will have; drawn `[b]`, how many tokens the row has
    had, and left `[b]`, how many it may still have: 0 is done; keys `[b]`, one a row; `stored`: how entries are.
    """

    kv: Any
    logits: Any
    position: Any
    drawn: Any
    left: Any
    keys: Any
    clock: Any
    stored: KV = struct.field(pytree_node=False, default="model")


@struct.dataclass
class Seats:
    """Who sits where, all `[r]`: what was read of prompt `source` of a batch goes to row `slot`. There it is the
    `sample` of the `prompt` (their numbers in the whole list, which decide what it draws), and has `most` tokens.
    Seats that stand twice do no harm."""

    source: Any
    slot: Any
    prompt: Any
    sample: Any
    most: Any


def prefill(
    config: Decoder,
    weights: Tree,
    tokens: Int[Array, "b s"],
    lengths: Int[Array, "b"],
    apart: bool = False,
    kv: KV = "model",
) -> Prefilled:
    """Reads prompts of unequal length, padded on the right. Ids below zero are places of a prompt or prefix
    (`decoder.rows`). Decoding may be by `layers_apart(config)`, from entries stored as `kv` says."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (places < lengths[:, None]).astype(jnp.int32)
    hidden, kept = trunk(
        config, weights, embed(config, weights, tokens), rows(tokens, segments, places, most=1), keep=True
    )
    assert kept is not None
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    kept = kept_apart(config, kept) if apart else kept
    return Prefilled(_laid(kept, kv), head(config, weights, last)[:, 0], lengths)


def begin(config: Decoder, slots: int, size: int, kv: KV = "model") -> Decoding:
    """So many rows of nothing, all done, with room for `size` positions each."""
    dtype, none = jnp.dtype(config.dtype), jnp.zeros(slots, jnp.int32)
    entries: dict[str, Entries] = {}
    for path, numbers in blocks(config).items():
        window = config.layer(numbers[0]).window
        ring = size if window is None else min(window, size)
        entries[path] = _cut(empty(kv, (len(numbers), slots, config.kv_heads, ring, config.head_size), dtype))
    keys, logits = jax.random.split(jax.random.key(0), slots), jnp.zeros((slots, config.vocab), dtype)
    return Decoding(entries, logits, none, none, none, keys, jnp.zeros((), jnp.int32), kv)


def place(state: Decoding, read: Prefilled, seats: Seats, seed: Key) -> Decoding:
    """The state with prompts that were read in some of its rows."""
    slot, lengths = seats.slot, read.lengths[seats.source]
    fold = jax.random.fold_in
    keys = jax.vmap(lambda prompt, sample: fold(fold(seed, prompt), sample))(seats.prompt, seats.sample)
    return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
        kv={path: _placed(own, read.kv[path], lengths, state.clock, seats) for path, own in state.kv.items()},
        logits=state.logits.at[slot].set(read.logits[seats.source].astype(state.logits.dtype)),
        position=state.position.at[slot].set(lengths),
        drawn=state.drawn.at[slot].set(0),
        left=state.left.at[slot].set(seats.most),
        keys=state.keys.at[slot].set(keys),
    )


def decode(
    config: Decoder,
    weights: Tree,
    state: Decoding,
    live: Bool[Array, "b"],
    sampling: Sampling,
    ends: Int[Array, "e"],
    steps: int,
) -> tuple[Decoding, Int[Array, "b s"], Array]:
    """Up to `steps` more tokens a row, and their log-probabilities; fewer when every row is done. A row is done behind
    one of the `ends`, behind its last token, and from now on if it is not `live`; what it writes then means nothing."""
    state = state.replace(left=jnp.where(live, state.left, 0))  # pyright: ignore[reportAttributeAccessIssue]
    batch, vocab = state.logits.shape
    noise = gumbels(state.keys, state.drawn, steps, vocab) if sampling.temperature else None
    written = jnp.zeros((steps, batch), jnp.int32), jnp.zeros((steps, batch), jnp.float32)

    def step(_: Array, carry: tuple[Array, Decoding, Array, Array]) -> tuple[Array, Decoding, Array, Array]:
        i, state, tokens, log_probs = carry
        if noise is None:
            token = jnp.argmax(state.logits, axis=-1)
            log_prob = jnp.zeros(batch, jnp.float32)
        else:
            token, log_prob = draw(noise[i], scores(state.logits, sampling))
        return i + 1, _next(config, weights, state, token, ends), tokens.at[i].set(token), log_probs.at[i].set(log_prob)

    def unfinished(carry: tuple[Array, Decoding, Array, Array]) -> Array:
        return (carry[0] < steps) & jnp.any(carry[1].left > 0)

    def several(carry: tuple[Array, Decoding, Array, Array]) -> tuple[Array, Decoding, Array, Array]:
        return jax.lax.fori_loop(0, math.gcd(steps, LOOK), step, carry)

    begun = (jnp.zeros((), jnp.int32), state, *written)
    _, state, tokens, log_probs = jax.lax.while_loop(unfinished, several, begun)
    return state, tokens.T, log_probs.T


def _next(config: Decoder, weights: Tree, state: Decoding, token: Int[Array, "b"], ends: Array) -> Decoding:
    """The state behind one more token a row. Rows that are done stay at their position."""
    at = state.position[:, None]
    seen = {path: _cached(entries, state) for path, entries in state.kv.items()}
    x = embed(config, weights, token[:, None])
    hidden, kept = trunk(config, weights, x, Rows(jnp.ones_like(at), at), cached=seen, keep=True)
    assert kept is not None
    going, ended = state.left > 0, jnp.isin(token, ends)

    def put(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new, state.clock % old.shape[3], 3)

    return Decoding(
        kv={path: _cut(jax.tree.map(put, state.kv[path], new)) for path, new in _laid(kept, state.stored).items()},
        logits=head(config, weights, hidden)[:, 0],
        position=state.position + going,
        drawn=state.drawn + 1,
        left=jnp.where(going & ~ended, state.left - 1, 0),
        keys=state.keys,
        clock=state.clock + 1,
        stored=state.stored,
    )


def _cached(entries: Entries, state: Decoding) -> Cached:
    ring = entries.k.shape[3]
    count = jnp.minimum(state.position, ring)
    return Cached.of(entries, (state.clock - count) % ring, count)


def _placed(kv: Entries, read: Entries, lengths: Array, clock: Array, seats: Seats) -> Entries:
    """Entries with prompts in some rows, of each the last positions that the ring has room for, the newest right behind
    the clock. All rows are written again, in a few large copies: row by row it is thousands of small ones."""
    slots, ring = kv.k.shape[1], kv.k.shape[3]
    seat = jnp.full(slots, -1, jnp.int32).at[seats.slot].set(jnp.arange(seats.slot.shape[0], dtype=jnp.int32))
    source, ends = seats.source[jnp.maximum(seat, 0)], lengths[jnp.maximum(seat, 0)]

    def put(into: Array, read: Array) -> Array:
        behind = read.shape[4:]  # scales have no axis of a head's numbers
        size = (*read.shape[:1], 1, *read.shape[2:3], ring, *behind)
        padded = jnp.pad(read, ((0, 0), (0, 0), (0, 0), (ring, 0), *((0, 0) for _ in behind)))

        def newest(source: Array, end: Array) -> Array:
            return jax.lax.dynamic_slice(padded, (0, source, 0, end, *(0 for _ in behind)), size)[:, 0]

        rows = jnp.roll(jax.vmap(newest, out_axes=1)(source, ends), clock, axis=3)
        seated = (seat >= 0).reshape(1, -1, *(1 for _ in rows.shape[2:]))
        return jnp.where(seated, rows.astype(into.dtype), into)

    return _cut(jax.tree.map(put, kv, read))


def _laid(kept: dict[str, tuple[Array, Array]], kv: KV) -> dict[str, Entries]:
    """Keys and values of a pass as the cache has them, `[l, b, k, s, h]`: what one head reads stands together."""
    return {path: stored(jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3), kv) for path, (k, v) in kept.items()}


def _cut(entries: Entries) -> Entries:
    return jax.tree.map(lambda x: constrain(x, "l b k t h" if x.ndim == 5 else "l b k t"), entries)
