# SPDX-License-Identifier: Apache-2.0
"""What a model says of a batch: log-probabilities of its targets, and scores where it has a head for them.

A batch is in the loader's format, packed or not; `most` bounds the examples in a row.
"""

import jax.numpy as jnp

from jaxpost.arrays import Array, Batch, Float, Tree
from jaxpost.losses import token_log_probs
from jaxpost.models import heads
from jaxpost.models.decoder import Decoder, contract_head, embed, head_weights, rows, trunk
from jaxpost.models.remat import Remat


def hidden_states(
    model: Decoder, weights: Tree, batch: Batch, most: int | None = None, remat: Remat = "none"
) -> Float[Array, "b s d"]:
    """What the trunk makes of every place."""
    places = rows(batch["tokens"], batch["segments"], batch["positions"], most)
    return trunk(model, weights, embed(model, weights, batch["tokens"]), places, remat=remat)[0]


def log_probs(
    model: Decoder,
    weights: Tree,
    batch: Batch,
    most: int | None = None,
    remat: Remat = "none",
    temperature: float = 1.0,
    chunk: int = 2048,
) -> Float[Array, "b s"]:
    """Log-probabilities (nats) of all targets; what they are worth where the mask is 0 is no matter. Sums over
    segments are an answer's: `losses.segment_sums(found * batch["mask"], batch["segments"], most)`."""
    hidden = hidden_states(model, weights, batch, most, remat)
    head = head_weights(model, weights)
    return token_log_probs(contract_head(model), head, hidden, batch["targets"], temperature, chunk)


def scores(
    model: Decoder, weights: Tree, batch: Batch, most: int | None = None, remat: Remat = "none"
) -> Float[Array, "b s"]:
    """The score at every place, of a head of one class. An answer's is that at its last token, which must be among the
    inputs, the end token included, as it is where a policy's answers are scored: `shift` alone would leave it out."""
    return heads.score(model, weights, hidden_states(model, weights, batch, most, remat))


def gathered(x: Float[Array, "b s *k"], start: Array, length: int) -> Float[Array, "b r *k"]:
    """Of every row the `length` places from its own `start` on."""
    at = jnp.minimum(start[:, None] + jnp.arange(length)[None], x.shape[1] - 1)
    return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=1)
