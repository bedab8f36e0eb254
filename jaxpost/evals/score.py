# SPDX-License-Identifier: Apache-2.0
"""Likelihoods of given text: what rank classification, perplexity and token accuracy are made of."""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxpost.arrays import Array, Batch, HostBatch, Tree
from jaxpost.data.tokenizers import newest
from jaxpost.evals.rank import Pair, Score, Scores
from jaxpost.faults import Fault
from jaxpost.kernels.linear_xent import linear_xent
from jaxpost.losses import cross_entropy
from jaxpost.models.decoder import Decoder, contract_head, embed, head_weights, rows, trunk

SHORTEST = 32  # the smallest of the lengths, each twice the one before, that batches are padded to


class Sums(NamedTuple):
    """Of each row, over its trained targets: negative log-likelihood in nats, likeliest tokens that were right, and
    how many targets there are; float32[b] each."""

    nll: Array
    hits: Array
    count: Array


@functools.partial(jax.jit, static_argnames=("config", "most"))
def row_sums(config: Decoder, weights: Tree, batch: Mapping[str, Any], most: int | None = None) -> Sums:
    """One forward pass over a batch in the loader's format; `most` bounds the segments of a row, where known.

    Compiled once for a config and a shape of batch and weights: what is bound to the same delta before and after
    training uses the same program. Logits exist for one chunk of tokens at a time.
    """
    places = rows(batch["tokens"], batch["segments"], batch["positions"], most)
    hidden, _ = trunk(config, weights, embed(config, weights, batch["tokens"]), places)
    mask = batch["mask"]
    _, losses, hits = linear_xent(
        contract_head(config), cross_entropy, head_weights(config, weights), hidden, batch["targets"], mask
    )
    sums = Sums(*(jnp.sum(jnp.where(mask > 0, x, 0.0), axis=-1) for x in (losses, hits, jnp.ones_like(losses))))
    if jax.sharding.get_abstract_mesh().empty:
        return sums
    return jax.lax.with_sharding_constraint(sums, P())  # every process reads the sums of all rows


class TokenStats(NamedTuple):
    """How well a text is predicted: loss (nats a token), its exponential, the share of tokens that were the likeliest,
    and over how many tokens."""

    loss: float
    perplexity: float
    accuracy: float
    count: int


def token_stats(
    config: Decoder, weights: Tree, batches: Iterable[Batch | HostBatch], most: int | None = None
) -> TokenStats:
    """Perplexity and token accuracy over the trained targets of all batches, each token counting the same."""
    totals = np.zeros(3)
    for sums in _one_late(row_sums(config, weights, batch, most) for batch in batches):
        totals += [np.asarray(x, np.float64).sum() for x in sums]
    nll, hits, count = totals
    if not count:
        raise Fault("evaluation: there is no token to predict; check that the data set and its loss mask are not empty")
    loss = float(nll / count)
    with np.errstate(over="ignore"):
        return TokenStats(loss, float(np.exp(np.float64(loss))), float(hits / count), int(count))


@dataclass(frozen=True)
class Scorer:
    """Log-probabilities of completions, in batches of `rows` rows padded to one of a few lengths up to `length` (or
    the model's own limit, where that is less).

    A longer pair loses the beginning of its prompt (reserved places stay), and is counted in `Scores.cut`; a completion
    that does not fit by itself is a fault. The first token of a text has nothing before it and no score, so that a
    completion behind an empty prompt counts one token less.
    """

    config: Decoder
    rows: int = 16
    length: int = 1024
    pad: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.length < 2:
            raise Fault(f"scorer: rows={self.rows} and length={self.length} must be at least 1 and 2")

    @property
    def limit(self) -> int:
        return min(self.length, self.config.max_length)

    def score(self, weights: Tree, pairs: Sequence[Pair]) -> Scores:
        """One score a pair, in their order. Pairs of similar length share a batch."""
        lengths = np.array([len(prompt) + len(completion) for prompt, completion in pairs], np.int64)
        order = np.argsort(-lengths, kind="stable")
        groups = [order[at : at + self.rows] for at in range(0, len(order), self.rows)]
        logprobs, counts = np.zeros(len(pairs)), np.zeros(len(pairs), np.int64)
        batches = (self._batch([pairs[i] for i in group]) for group in groups)
        scored = _one_late(row_sums(self.config, weights, batch, 1) for batch in batches)
        for group, sums in zip(groups, scored, strict=True):
            logprobs[group] = -np.asarray(sums.nll, np.float64)[: len(group)]
            counts[group] = np.asarray(sums.count)[: len(group)].astype(np.int64)
        return Scores(logprobs, counts, int(np.sum(lengths > self.limit)))

    def over(self, weights: Tree) -> Score:
        """The scorer of one model."""
        return functools.partial(self.score, weights)

    def _batch(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
        """One pair a row, shifted as in training; rows that are left over are padding."""
        longest = max(len(prompt) + len(completion) for prompt, completion in pairs)
        width = _padded(longest - 1, self.limit - 1)
        shape = self.rows, width
        batch: dict[str, np.ndarray] = {name: np.zeros(shape, np.int32) for name in ("segments", "positions")}
        batch |= {name: np.full(shape, self.pad, np.int32) for name in ("tokens", "targets")}
        batch["mask"] = np.zeros(shape, np.float32)
        for row, (prompt, completion) in enumerate(pairs):
            most = self.limit - 1 - sum(token < 0 for token in prompt)
            if not 0 < len(completion) <= most:
                raise Fault(f"scorer: a completion has {len(completion)} tokens, but there is room for 1 to "
                            f"{most}; raise the scorer's length, as far as the model goes")  # fmt: skip
            ids = np.array([*prompt, *completion], np.int32)
            ids = ids[newest(ids, self.limit)]
            size = len(ids) - 1
            batch["tokens"][row, :size], batch["targets"][row, :size] = ids[:-1], np.maximum(ids[1:], 0)
            batch["mask"][row, max(0, size - len(completion)) : size] = 1.0
            batch["segments"][row, :size] = 1
            batch["positions"][row, :size] = np.arange(size)
        return batch


def _padded(width: int, limit: int) -> int:
    return min(limit, max(SHORTEST, 2 ** math.ceil(math.log2(max(1, width)))))


def _one_late(sums: Iterator[Sums]) -> Iterator[Sums]:
    """The same, each handed on when the next is already under way, so that the device does not wait for the host."""
    waiting = next(sums, None)
    for following in sums:
        assert waiting is not None
        yield waiting
        waiting = following
    if waiting is not None:
        yield waiting
