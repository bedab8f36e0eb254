# SPDX-License-Identifier: Apache-2.0
"""From logits to the distribution that tokens are drawn from, and draws from it."""

import math
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.faults import Fault, nearest
from jaxpost.kernels.decode_attention import KV


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k keeps the k likeliest tokens (0: all); top_p keeps the fewest likeliest tokens
    whose probabilities, after temperature and top_k, reach p (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751).
    Tokens as likely as the last one kept stay too. The same seed gives the same sample of the prompt at the same place
    of a list the same completion, whatever the other prompts are and however many are written at once.

    `kv` says how keys and values of earlier tokens are stored: as the model computes them, or in eight bits (`int8`,
    `fp8`), half the memory and half of what a step reads of them. What is drawn then differs a little from what one
    pass over the text says.
    """

    max_new: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    kv: KV = "model"

    def __post_init__(self) -> None:
        for name, least in (("max_new", 1), ("temperature", 0), ("top_k", 0)):
            if not (value := getattr(self, name)) >= least:
                raise Fault(f"{name} is {value}; it must be at least {least}")
        if not 0 < self.top_p <= 1:
            raise Fault(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.kv not in get_args(KV):
            raise Fault(f"kv is {self.kv!r}; {nearest(self.kv, get_args(KV))}")


def scores(logits: Float[Array, "*b v"], sampling: Sampling) -> Float[Array, "*b v"]:
    """The logits of the distribution that tokens are drawn from, in float32, not normalised; -inf for what cannot be
    drawn. Not for greedy sampling, which has none."""
    found = logits.astype(jnp.float32) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        found = _kept(found, jnp.ones_like(found), float(sampling.top_k))
    if sampling.top_p < 1:
        found = _kept(found, jax.nn.softmax(found, axis=-1), sampling.top_p)
    return found


def distribution(logits: Float[Array, "*b v"], sampling: Sampling) -> Float[Array, "*b v"]:
    """Log-probabilities of the next token; -inf for what cannot be drawn. Greedy puts everything on the likeliest."""
    if sampling.temperature == 0:
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
        return jnp.where(best, 0.0, -jnp.inf)
    return jax.nn.log_softmax(scores(logits, sampling), axis=-1)


def draw(noise: Float[Array, "b n"], scores: Float[Array, "b v"]) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """One token a row, and its log-probability under the distribution that it was drawn from: `exp(scores)`, whatever
    they sum to. `gumbels` makes the noise.

    First a block of neighbouring tokens by the blocks' masses, then a token of it, each by the largest of score plus
    noise: so a row costs the noise of a few hundred numbers, instead of one for every word of the vocabulary.
    """
    count, width = _blocks(scores.shape[-1])
    spare = count * width - scores.shape[-1]
    blocks = jnp.pad(scores, ((0, 0), (0, spare)), constant_values=-jnp.inf).reshape(-1, count, width)
    masses = jax.nn.logsumexp(blocks, axis=-1)
    block = jnp.argmax(masses + noise[:, :count], axis=-1)
    own = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    place = jnp.argmax(own + noise[:, count:], axis=-1)
    score = jnp.take_along_axis(own, place[:, None], axis=-1)[:, 0]
    return block * width + place, score - jax.nn.logsumexp(masses, axis=-1)


def gumbels(keys: Array, numbers: Int[Array, "b"], steps: int, vocab: int) -> Float[Array, "s b n"]:
    """The noise of so many draws a row: that of a row's token depends on the row's key and the token's number only.
    numbers are those of the first tokens."""

    def one(key: Array, number: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, number), (sum(_blocks(vocab)),))

    each = jax.vmap(jax.vmap(one), (None, 0))
    return each(keys, numbers[None] + jnp.arange(steps, dtype=jnp.int32)[:, None])


def _blocks(vocab: int) -> tuple[int, int]:
    """How many blocks a vocabulary is cut into, and their width: a power of two not above the root."""
    width = 1 << (math.isqrt(vocab).bit_length() - 1)
    return -(-vocab // width), width


@jax.jit  # a loop outside of a compiled program would be compiled at every call
def _kept(scores: Float[Array, "*b v"], weights: Float[Array, "*b v"], limit: Any) -> Float[Array, "*b v"]:
    """The scores with -inf where those that are higher already weigh `limit` or more.

    The least score that stays is found by halving the range of floats, in 32 passes over the row: sorting a vocabulary
    costs far more. Equal scores stay together, and the highest always does.
    """

    def stays(least: Array) -> Array:
        return jnp.sum(jnp.where(scores > _float(least), weights, 0.0), axis=-1, keepdims=True) < limit

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends  # high stays, low does not, if any does not
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without an overflow
        enough = stays(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    high = _ordinal(jnp.max(scores, axis=-1, keepdims=True))
    low = jnp.full_like(high, _LOWEST - 1)
    _, least = jax.lax.fori_loop(0, 32, halve, (low, high))
    return jnp.where(scores < _float(least), -jnp.inf, scores)


def _ordinal(x: Array) -> Array:
    """Whole numbers in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _float(ordinal: Array) -> Array:
    return jax.lax.bitcast_convert_type(ordinal ^ ((ordinal >> 31) & 0x7FFFFFFF), jnp.float32)


_LOWEST = -0x7F800001  # the ordinal of -inf
