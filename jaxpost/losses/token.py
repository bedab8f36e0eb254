# SPDX-License-Identifier: Apache-2.0
"""Losses of one token at a time."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.kernels.linear_xent import chosen


def cross_entropy(
    logits: Float[Array, "*b v"], targets: Int[Array, "*b"], label_smoothing: float = 0.0
) -> Float[Array, "*b"]:
    """Negative log-likelihood of the targets, in nats.

    `-sum_v q_v log softmax(logits)_v` with `q = (1 - e) onehot(target) + e / V` for label smoothing e (Szegedy et al.
    2015, https://arxiv.org/abs/1512.00567). Logits of any floating type; the arithmetic is float32.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    loss = normaliser - chosen(logits, targets)
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss + label_smoothing * (normaliser - jnp.mean(logits, axis=-1))
    return loss


def z_loss(logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """`log(sum exp(logits))^2`, which keeps the softmax normaliser near one (Chowdhery et al. 2022,
    https://arxiv.org/abs/2204.02311; customary weight 1e-4)."""
    return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) ** 2


def dft(log_probs: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Dynamic fine-tuning: the negative log-likelihood of tokens, each weighed by its own probability.

    `-p log p` with no gradient through the factor p, from the targets' log-probabilities (`token_log_probs`, or
    `-cross_entropy`), in nats: unlikely tokens no longer have the largest gradients (Wu et al. 2025,
    https://arxiv.org/abs/2508.05629; TRL's `loss_type="dft"`). Its value is no measure of a model: near p = 0 it falls
    again.
    """
    log_probs = log_probs.astype(jnp.float32)
    return -log_probs * jax.lax.stop_gradient(jnp.exp(log_probs))


def entropy(logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """`-sum_v p_v log p_v` of `p = softmax(logits)`, in nats: 0 where one word is certain, log V where all are alike. A
    bonus of it keeps a policy from settling early. A word at minus infinity is no word."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    excluded = jnp.isneginf(logs)
    logs = jnp.where(excluded, 0.0, logs)
    return -jnp.sum(jnp.where(excluded, 0.0, jnp.exp(logs) * logs), axis=-1)


def log_sum_squares(logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """`log sum_v p_v^2` of `p = softmax(logits)`, in nats: how likely two draws agree, for `wpo_weights`."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(2 * logits, axis=-1) - 2 * jax.nn.logsumexp(logits, axis=-1)
