# SPDX-License-Identifier: Apache-2.0
"""Losses of choosing places: where in its own text an example's answer starts, and where it ends."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int


def last_tokens(segments: Int[Array, "b s"]) -> Float[Array, "b s"]:
    """1 at the last token of every example, whatever token it is: in a causal model the one that has seen all of it.
    Segments count the examples of a row from 1; 0 is padding."""
    following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    return ((segments > 0) & (segments != following)).astype(jnp.float32)


def place_losses(scores: Float[Array, "b s *k"], segments: Int[Array, "b s"]) -> Float[Array, "b s *k"]:
    """Of every place, the negative log-likelihood (in nats) of choosing it among the places of its own segment.

    `-log softmax(scores over {j : segments_j = segments_i})_i`, for each of the last axis's choices by itself, in
    float32 (for start and end: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 4.2). What is packed
    beside an example has no part in it; give segment 0 to what must not be chosen.
    """
    scores = scores.astype(jnp.float32)

    def row(scores: Array, segments: Array) -> Array:
        count = segments.shape[0] + 1
        top = jax.lax.stop_gradient(jax.ops.segment_max(scores, segments, count))[segments]
        total = jax.ops.segment_sum(jnp.exp(scores - top), segments, count)[segments]
        return jnp.log(total) + top - scores

    return jax.vmap(row)(scores, segments)
