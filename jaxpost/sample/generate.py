# SPDX-License-Identifier: Apache-2.0
"""Completions of a batch of prompts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost.arrays import Tree
from jaxpost.delta.bank import resized
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder
from jaxpost.sample.decode import Decoding, decode, prefill
from jaxpost.sample.logits import Sampling

CHUNK = 16  # tokens between two looks at what has been written
GREEDY = Sampling()


@dataclass(frozen=True)
class Completion:
    """What one prompt was continued with. `tokens` leave out the end token, and whatever a stop string cut off.
    `log_probs` are those of the tokens under the distribution that they were drawn from, the end token's included."""

    tokens: list[int]
    log_probs: np.ndarray
    reason: Literal["end", "stop", "length"]


def generate(
    config: Decoder,
    weights: Tree,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = GREEDY,
    *,
    ends: Sequence[int] = (),
    stop: Callable[[list[int]], int | None] | None = None,
) -> list[Completion]:
    """A completion of every prompt (token ids, of any lengths), until one of the end tokens, or `max_new` tokens, or
    `stop(tokens)` says at how many tokens to cut (`stops_at` makes it from strings).

    Weights may be bound to a delta and quantised; if the delta is of banks, each prompt goes through the entry chosen
    for it. Prompts reserve places for a soft prompt or prefix by ids below zero. Shapes are rounded up to powers of
    two, so that batches of similar size share a compiled program. Raises `Fault` for an empty prompt and for one that
    leaves no room in the model's length.
    """
    *_, last = stream(config, weights, prompts, sampling, ends=ends, stop=stop)
    return last


def stream(
    config: Decoder,
    weights: Tree,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = GREEDY,
    *,
    ends: Sequence[int] = (),
    stop: Callable[[list[int]], int | None] | None = None,
) -> Iterator[list[Completion]]:
    """The completions so far, again and again as they grow."""
    if not prompts:
        yield []
        return
    longest = max(map(len, prompts))
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise Fault(f"prompt {number} is empty; give at least one token (a tokenizer's BOS will do)")
    if longest + sampling.max_new > config.max_length:
        raise Fault(
            f"a prompt of {longest} tokens with {sampling.max_new} new ones exceeds the model's {config.max_length} "
            "positions; shorten the prompt or lower max_new"
        )
    rows, width = _power(len(prompts), 1), _power(longest, 16)
    tokens, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)], lengths[i] = prompt, len(prompt)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(sampling.seed), jnp.arange(rows))
    room = _power(sampling.max_new, 16)
    shaping = replace(sampling, max_new=1, seed=0)  # neither is part of the program, which must not depend on them
    weights = resized(weights, rows)
    state = _prefill(config, weights, tokens, lengths, keys, width + room, room)
    for drawn in range(0, sampling.max_new, CHUNK):
        steps = min(CHUNK, sampling.max_new - drawn)
        state = _decode(config, weights, state, shaping, tuple(ends), steps)
        completions = _read(state, len(prompts), ends, stop)
        yield completions
        if all(c.reason != "length" for c in completions):
            return
        stopped = [c.reason != "length" for c in completions] + [True] * (rows - len(prompts))
        state = state.replace(done=jnp.asarray(stopped))  # pyright: ignore[reportAttributeAccessIssue]


def stops_at(strings: Sequence[str], decode_text: Callable[[list[int]], str]) -> Callable[[list[int]], int | None]:
    """A `stop` for `generate` that cuts before the first of the strings: the most tokens whose text ends before it."""

    def stop(tokens: list[int]) -> int | None:
        text = decode_text(tokens)
        found = [at for at in (text.find(string) for string in strings) if at >= 0]
        if not found:
            return None
        return next(n for n in range(len(tokens), -1, -1) if len(decode_text(tokens[:n])) <= min(found))

    return stop


def _read(
    state: Decoding, count: int, ends: Sequence[int], stop: Callable[[list[int]], int | None] | None
) -> list[Completion]:
    tokens, log_probs, drawn = jax.device_get((state.tokens, state.log_probs, state.count))
    completions = []
    for row, scores in zip(tokens[:count, :drawn].tolist(), log_probs[:count, :drawn], strict=True):
        length = next((i for i, token in enumerate(row) if token in ends), len(row))
        cut = stop(row[:length]) if stop is not None else None
        if cut is not None:
            completions.append(Completion(row[:cut], scores[:cut], "stop"))
        elif length < len(row):
            completions.append(Completion(row[:length], scores[: length + 1], "end"))
        else:
            completions.append(Completion(row, scores, "length"))
    return completions


def _power(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())


_prefill: Callable[..., Decoding] = jax.jit(prefill, static_argnums=(0, 5, 6))
_decode: Callable[..., Decoding] = jax.jit(decode, static_argnums=(0, 3, 4), donate_argnums=(2,))
