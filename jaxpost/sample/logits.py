# SPDX-License-Identifier: Apache-2.0
"""From logits to the distribution that tokens are drawn from."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.faults import Fault


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k keeps the k likeliest tokens (0: all); top_p keeps the fewest likeliest tokens
    whose probabilities, after temperature and top_k, reach p (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751).
    Tokens as likely as the last one kept stay too. The same seed gives the prompt at the same place of a batch the
    same completion, whatever the other prompts are."""

    max_new: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new", 1), ("temperature", 0), ("top_k", 0)):
            if not (value := getattr(self, name)) >= least:
                raise Fault(f"{name} is {value}; it must be at least {least}")
        if not 0 < self.top_p <= 1:
            raise Fault(f"top_p is {self.top_p}; it must be above 0 and at most 1")


def distribution(logits: Float[Array, "*b v"], sampling: Sampling) -> Float[Array, "*b v"]:
    """Log-probabilities of the next token; -inf for what cannot be drawn. Greedy puts everything on the likeliest."""
    logits = logits.astype(jnp.float32)
    if sampling.temperature == 0:
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
        return jnp.where(best, 0.0, -jnp.inf)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        # Compared as logits: a probability computed twice could differ in its last bit, and nothing would be left.
        ranked = jnp.sort(logits, axis=-1, descending=True)
        mass = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(mass, axis=-1) - mass  # the mass of likelier tokens; below p for those that stay
        least = jnp.min(jnp.where(before < sampling.top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.nn.log_softmax(logits, axis=-1)


def draw(keys: Array, log_probs: Float[Array, "b v"]) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """One token a row, each by its own key, and its log-probability under the distribution that it was drawn from."""
    tokens = jax.vmap(jax.random.categorical)(keys, log_probs)
    return tokens, jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
