# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode over a cache of keys and values, as pure functions of fixed shapes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Bool, Int, Key, Tree
from jaxpost.kernels.attention import Rows
from jaxpost.kernels.decode_attention import KV, Cached, reads_in_place
from jaxpost.models.architecture import blocks, is_stacked
from jaxpost.models.decoder import Decoder, embed, head, rows, trunk
from jaxpost.sample.logits import Sampling, draw, gumbels, scores
from jaxpost.sample.rings import Form, placed, written
from jaxpost.shard import platform

LOOK = 4
"""Steps between two looks at whether all rows are done. On a GPU each is a wait of the host for the device, and then of
the device for the host: there is one, before the first step."""


@struct.dataclass
class Prefilled:
    """Prompts that were read: by stack (`Form`) the entries `[l, b, k, s, h]` of their tokens, the logits `[b, v]` of
    what comes next, and their lengths `[b]`."""

    kv: Any
    logits: Any
    lengths: Any


@struct.dataclass
class Decoding:
    """Rows in the middle of their completions, of which each may be at another token of its own.

    kv: by stack (`Form`) the entries `[l, b, k, t, h]` that its layers remember, a ring of t places. All rows write at
    the same one, `clock` modulo t, so that a step writes one slice of a stack: a row's newest token stands right behind
    the clock, whenever the row began, and its older ones behind that.
    logits `[b, v]` of each row's next token; position `[b]` that it will have; drawn `[b]`, how many tokens the row has
    had, and left `[b]`, how many it may still have: 0 is done; keys `[b]`, one a row.
    """

    kv: Any
    logits: Any
    position: Any
    drawn: Any
    left: Any
    keys: Any
    clock: Any
    form: Form = struct.field(pytree_node=False, default=Form())


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
    form: Form = Form(),  # noqa: B008
) -> Prefilled:
    """Reads prompts of unequal length, padded on the right. Ids below zero are places of a prompt or prefix
    (`decoder.rows`)."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (places < lengths[:, None]).astype(jnp.int32)
    hidden, kept = trunk(
        config, weights, embed(config, weights, tokens), rows(tokens, segments, places, most=1), keep=True
    )
    assert kept is not None
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return Prefilled(form.entries(config, kept), head(config, weights, last)[:, 0], lengths)


def begin(config: Decoder, slots: int, size: int, kv: KV = "model") -> Decoding:
    """So many rows of nothing, all done, with room for `size` positions each. Where no two layers are stacked, nor are
    their entries, unless they are read in place."""
    dtype, none = jnp.dtype(config.dtype), jnp.zeros(slots, jnp.int32)
    form = Form(kv)
    entries = form.nothing(config, slots, size)
    if not any(map(is_stacked, blocks(config))):
        q, new = (jnp.zeros((slots, 1, n, config.head_size), dtype) for n in (config.heads, config.kv_heads))
        if not all(reads_in_place(q, new, Cached.of(stack, none, none)) for stack in entries.values()):
            form = Form(kv, together=False)
            entries = form.nothing(config, slots, size)
    keys, logits = jax.random.split(jax.random.key(0), slots), jnp.zeros((slots, config.vocab), dtype)
    return Decoding(entries, logits, none, none, none, keys, jnp.zeros((), jnp.int32), form)


def place(state: Decoding, read: Prefilled, seats: Seats, seed: Key) -> Decoding:
    """The state with prompts that were read in some of its rows."""
    slot, fold = seats.slot, jax.random.fold_in
    keys = jax.vmap(lambda prompt, sample: fold(fold(seed, prompt), sample))(seats.prompt, seats.sample)
    return state.replace(  # pyright: ignore[reportAttributeAccessIssue]
        kv=placed(state.kv, read.kv, seats.source, slot, read.lengths, state.clock),
        logits=state.logits.at[slot].set(read.logits[seats.source].astype(state.logits.dtype)),
        position=state.position.at[slot].set(read.lengths[seats.source]),
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
    blank = jnp.zeros((steps, batch), jnp.int32), jnp.zeros((steps, batch), jnp.float32)

    def step(_: Array, carry: tuple[Array, Decoding, Array, Array]) -> tuple[Array, Decoding, Array, Array]:
        i, state, tokens, log_probs = carry
        if noise is None:
            token = jnp.argmax(state.logits, axis=-1)
            log_prob = jnp.zeros(batch, jnp.float32)
        else:
            token, log_prob = draw(noise[i], scores(state.logits, sampling))
        return i + 1, _next(config, weights, state, token, ends), tokens.at[i].set(token), log_probs.at[i].set(log_prob)

    look = steps if platform() == "gpu" else math.gcd(steps, LOOK)

    def several(_: Any, carry: tuple[Array, Decoding, Array, Array]) -> tuple[Array, Decoding, Array, Array]:
        some = jnp.any(carry[1].left > 0)
        return jax.lax.cond(some, lambda c: jax.lax.fori_loop(0, look, step, c), lambda c: c, carry)

    begun = (jnp.zeros((), jnp.int32), state, *blank)
    _, state, tokens, log_probs = jax.lax.fori_loop(0, steps // look, several, begun)
    return state, tokens.T, log_probs.T


def _next(config: Decoder, weights: Tree, state: Decoding, token: Int[Array, "b"], ends: Array) -> Decoding:
    """The state behind one more token a row. Rows that are done stay at their position."""
    at = state.position[:, None]
    x = embed(config, weights, token[:, None])
    seen = state.form.seen(config, state.kv, state.position, state.clock)
    hidden, kept = trunk(config, weights, x, Rows(jnp.ones_like(at), at), cached=seen, keep=True)
    assert kept is not None
    going, ended = state.left > 0, jnp.isin(token, ends)
    return Decoding(
        kv=written(state.kv, state.form.entries(config, kept), state.clock),
        logits=head(config, weights, hidden)[:, 0],
        position=state.position + going,
        drawn=state.drawn + 1,
        left=jnp.where(going & ~ended, state.left - 1, 0),
        keys=state.keys,
        clock=state.clock + 1,
        form=state.form,
    )
