# SPDX-License-Identifier: Apache-2.0
"""Completions of prompts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxpost.arrays import Tree
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder
from jaxpost.sample.engine import Engine, Row, Stop
from jaxpost.sample.logits import Sampling

GREEDY = Sampling()


@dataclass(frozen=True)
class Completion:
    """What one prompt was continued with. `tokens` leave out the end token, and whatever a stop string cut off.
    `log_probs` are those of the tokens under the distribution that they were drawn from, the end token's included;
    `end` is that token, if it is what ended it."""

    tokens: list[int]
    log_probs: np.ndarray
    reason: Literal["end", "stop", "length"]
    end: int | None = None


def generate(
    config: Decoder,
    weights: Tree,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = GREEDY,
    *,
    ends: Sequence[int] = (),
    stop: Stop | None = None,
    samples: int = 1,
    slots: int | None = None,
) -> list[Completion]:
    """`samples` completions of every prompt (token ids, of any lengths), until one of the end tokens, or `max_new`
    tokens, or `stop(tokens)` says at how many tokens to cut (`stops_at` makes it from strings). All of the first
    prompt come first.

    `slots` rows are written at once (by default all, as far as memory allows); a row that has ended makes room for one
    that waits, and a prompt is read once for all its samples. What is drawn depends on the seed and on the numbers of
    the prompt, the sample and the token, on nothing else.

    Weights may be bound to a delta and quantised; if the delta is of banks, each prompt goes through the entry chosen
    for it. Prompts reserve places for a soft prompt or prefix by ids below zero. Shapes are rounded up, so that lists
    of similar size share compiled programs. Raises `Fault` for an empty prompt, for one that leaves no room in the
    model's length, and for fewer than one sample or slot.
    """
    _check(config, prompts, sampling, samples, slots)
    if not prompts:
        return []
    engine = Engine(config, weights, prompts, sampling, ends, stop, samples, slots)
    for _ in engine.run():
        pass
    return [_completion(row) for row in engine.rows]


def stream(
    config: Decoder,
    weights: Tree,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = GREEDY,
    *,
    ends: Sequence[int] = (),
    stop: Stop | None = None,
) -> Iterator[list[Completion]]:
    """The completions so far, again and again as they grow; what has not ended yet has the reason `length`."""
    _check(config, prompts, sampling, 1, None)
    if not prompts:
        yield []
        return
    engine = Engine(config, weights, prompts, sampling, ends, stop, 1, None)
    for _ in engine.run():
        yield [_completion(row) for row in engine.rows]


def stops_at(strings: Sequence[str], decode_text: Callable[[list[int]], str]) -> Stop:
    """A `stop` for `generate` that cuts before the first of the strings: the most tokens whose text ends before it."""

    def stop(tokens: list[int]) -> int | None:
        text = decode_text(tokens)
        found = [at for at in (text.find(string) for string in strings) if at >= 0]
        if not found:
            return None
        return next(n for n in range(len(tokens), -1, -1) if len(decode_text(tokens[:n])) <= min(found))

    return stop


def _check(
    config: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int, slots: int | None
) -> None:
    for name, value in (("samples", samples), ("slots", slots)):
        if value is not None and value < 1:
            raise Fault(f"generate: {name} is {value}; it must be at least 1")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise Fault(f"prompt {number} is empty; give at least one token (a tokenizer's BOS will do)")
    longest = max(map(len, prompts), default=0)
    if prompts and longest + sampling.max_new > config.max_length:
        raise Fault(
            f"a prompt of {longest} tokens with {sampling.max_new} new ones exceeds the model's {config.max_length} "
            "positions; shorten the prompt or lower max_new"
        )


def _completion(row: Row) -> Completion:
    return Completion(list(row.tokens), np.array(row.log_probs, np.float32), row.reason or "length", row.end)
