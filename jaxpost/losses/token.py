# SPDX-License-Identifier: Apache-2.0
"""Losses of one token at a time."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "*b v"], targets: Int[Array, "*b"], label_smoothing: float = 0.0
) -> Float[Array, "*b"]:
    """Negative log-likelihood of the targets, in nats.

    `-sum_v q_v log softmax(logits)_v` with `q = (1 - e) onehot(target) + e / V` for label smoothing e (Szegedy et al.
    2015, https://arxiv.org/abs/1512.00567). Logits of any floating type; the arithmetic is float32.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = normaliser - chosen
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss + label_smoothing * (normaliser - jnp.mean(logits, axis=-1))
    return loss


def z_loss(logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """`log(sum exp(logits))^2`, which keeps the softmax normaliser near one (Chowdhery et al. 2022,
    https://arxiv.org/abs/2204.02311; customary weight 1e-4)."""
    return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) ** 2
