# SPDX-License-Identifier: Apache-2.0
"""What a head says of given tokens, from hidden states, while the logits of all tokens never exist at once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int, Tree
from jaxpost.kernels.linear_xent import chosen, linear_values


def token_log_probs(
    contract: Callable[[Array, Tree], Array],
    weights: Tree,
    hidden: Float[Array, "b s d"],
    targets: Int[Array, "b s"],
    temperature: float = 1.0,
    chunk: int = 2048,
) -> Float[Array, "b s"]:
    """Of every token its log-probability, `log softmax(logits / temperature)[target]`, in nats and float32.

    `contract(hidden, weights)` gives the logits of some tokens, `hidden @ weights` for a plain head; it must not close
    over anything that is differentiated. Logits exist for about `chunk` tokens of a device at a time. Add up those of
    an answer (`segment_sums`) for its log-likelihood, and divide by its length for the mean.
    """
    (log_probs,) = linear_values(contract, _log_probs(temperature), weights, hidden, targets, chunk)
    return log_probs


def token_log_probs_and_entropy(
    contract: Callable[[Array, Tree], Array],
    weights: Tree,
    hidden: Float[Array, "b s d"],
    targets: Int[Array, "b s"],
    temperature: float = 1.0,
    chunk: int = 2048,
) -> tuple[Float[Array, "b s"], Float[Array, "b s"]]:
    """`token_log_probs`, and of every place the entropy of what could stand there, `-sum_v p_v log p_v`, in nats."""
    log_probs, entropy = linear_values(contract, _both(temperature), weights, hidden, targets, chunk)
    return log_probs, entropy


# One function object for each temperature: what a program is compiled for must compare equal.
@functools.cache
def _log_probs(temperature: float) -> Callable[[Array, Array], tuple[Array, ...]]:
    def values(logits: Array, targets: Array) -> tuple[Array, ...]:
        logits = logits / temperature
        return (chosen(logits, targets) - jax.nn.logsumexp(logits, axis=-1),)

    return values


@functools.cache
def _both(temperature: float) -> Callable[[Array, Array], tuple[Array, ...]]:
    def values(logits: Array, targets: Array) -> tuple[Array, ...]:
        logs = jax.nn.log_softmax(logits / temperature, axis=-1)
        # A token that cannot come, at minus infinity, adds nothing: chosen before the product, whose gradient is NaN.
        return chosen(logs, targets), -jnp.sum(jnp.exp(logs) * jnp.where(jnp.isfinite(logs), logs, 0.0), axis=-1)

    return values
