# SPDX-License-Identifier: Apache-2.0
"""What logits say of the targets, found by comparing and summing: loops over a vocabulary that fuse with the others."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int


def chosen(logits: Float[Array, "*b v"], targets: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """The logit of each target; 0 for a target that is no word.

    Not a gather: its gradient is a scatter into an array of all logits, which must exist for that, in float32. This
    one's is part of whatever makes the other gradients of the logits; on an H200 that is a third of the time that the
    softmax of a large vocabulary takes.
    """
    words = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    return jnp.sum(jnp.where(words == targets[..., None], logits, 0), axis=-1)


def likeliest(logits: Float[Array, "*b v"], targets: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """1 where the target has the highest logit, and its share where several words have it (16-bit logits are often
    alike): how often it would be guessed. 0 for a target that is no word.

    Asked so that nothing waits for the target's logit, and with the very maximum (and sums of its type) that
    `logsumexp` takes: so XLA counts while it sums up the softmax.
    """
    most = jnp.max(logits, axis=-1)
    most = jnp.where(jnp.isfinite(most), most, 0)
    alike = jnp.sum(logits == most[..., None], axis=-1, dtype=jnp.float32)
    return jnp.where((chosen(logits, targets) == most) & (targets >= 0), 1 / jnp.maximum(alike, 1), 0.0)
