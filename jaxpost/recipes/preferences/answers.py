# SPDX-License-Identifier: Apache-2.0
"""What a model says of whole answers: sums over each answer of a batch, however its rows are packed.

Segment s + 1 of row b is the answer `[b, s]`; of a pair, the chosen one is even and the rejected one odd.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpost import shard
from jaxpost.arrays import Array, Batch, Float, Tree
from jaxpost.data.batches.loader import Unit
from jaxpost.data.batches.packing import MOST
from jaxpost.kernels.linear_xent import chosen, linear_values
from jaxpost.losses import last_tokens, length_weights, log_sum_squares, segment_sums
from jaxpost.models import heads
from jaxpost.models.decoder import Decoder, contract_head, head_weights
from jaxpost.models.remat import Remat
from jaxpost.recipes import likelihood
from jaxpost.recipes.assembly import abstract_batch


class Answers(NamedTuple):
    """Of every answer, `[b, MOST]` each: its log-probability in nats, its tokens (the end token counts), and where they
    were asked for, the sums of `log sum_v p_v^2` over it. Where there is no answer, zeros."""

    log_probs: Array
    lengths: Array
    squares: Array | None = None

    def pairs(self, number: int) -> "Answers":
        """The first (0) or the second (1) answer of every pair, `[b, MOST / 2]` each."""
        squares = None if self.squares is None else halved(self.squares, number)
        return Answers(halved(self.log_probs, number), halved(self.lengths, number), squares)


def halved(x: Float[Array, "b s"], number: int) -> Float[Array, "b p"]:
    return x[:, number::2]


def answers(
    model: Decoder,
    weights: Tree,
    batch: Batch,
    remat: Remat = "none",
    chunk: int = 2048,
    beyond: float = 1.0,
    squares: bool = False,
) -> Answers:
    """One pass over a batch of pairs, or of answers by themselves. With `beyond` less than 1 what a pair's longer
    answer says beyond the length of the other counts that much (LD-DPO)."""
    mask, segments = batch["mask"], batch["segments"]
    lengths = segment_sums(mask, segments, MOST)
    hidden = likelihood.hidden_states(model, weights, batch, MOST, remat)
    values = _log_probs_and_squares if squares else _log_probs
    found = linear_values(contract_head(model), values, head_weights(model, weights), hidden, batch["targets"], chunk)
    scale = mask
    if beyond < 1.0:
        shared = jnp.minimum(halved(lengths, 0), halved(lengths, 1))
        scale = length_weights(mask, segments, jnp.repeat(shared, 2, axis=1), alpha=beyond)
    log_probs = segment_sums(jnp.where(mask > 0, found[0], 0.0) * scale, segments, MOST)
    rest = segment_sums(jnp.where(mask > 0, found[1], 0.0), segments, MOST) if squares else None
    return Answers(log_probs, lengths, rest)


# One function object for each: what a program is compiled for must compare equal.
def _log_probs(logits: Array, targets: Array) -> tuple[Array, ...]:
    return (chosen(logits, targets) - jax.nn.logsumexp(logits, axis=-1),)


def _log_probs_and_squares(logits: Array, targets: Array) -> tuple[Array, ...]:
    return *_log_probs(logits, targets), log_sum_squares(jax.lax.stop_gradient(logits))


def scores(model: Decoder, weights: Tree, batch: Batch, remat: Remat = "none") -> Float[Array, "b s c"]:
    """What the head says of every answer, `[b, MOST, classes]`: that at its last token, by its length, whatever token
    it is."""
    found = heads.classes(model, weights, likelihood.hidden_states(model, weights, batch, MOST, remat))
    read = found * last_tokens(batch["segments"])[..., None]
    return jax.vmap(lambda x: segment_sums(x, batch["segments"], MOST), in_axes=2, out_axes=2)(read)


def unreserved(batch: Batch, places: int) -> dict[str, Array]:
    """The batch as a model sees it that has no learned prompt: every example without the `places` that it reserves in
    front of it."""
    hidden = batch["tokens"] < 0
    return {
        **batch,
        "segments": jnp.where(hidden, 0, batch["segments"]),
        "positions": jnp.where(hidden, 0, jnp.maximum(batch["positions"] - places, 0)),
        "mask": jnp.where(hidden, 0.0, batch["mask"]),
    }


def abstract(unit: Unit, rows: int, length: int, mesh: Mesh) -> dict[str, Any]:
    """A batch of such units as the loader makes it, without its numbers."""
    place = shard.rows(mesh)
    extras = unit.extras([[]])
    made = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=place) for name, x in extras.items()}
    return abstract_batch(rows, length, mesh) | made


def weighted_means(found: Mapping[str, Array], weight: Array, total: Array) -> dict[str, Array]:
    """Means over what has a weight, each a part of the whole batch's; what has none may be anything."""
    return {name: jnp.sum(jnp.where(weight > 0, x, 0.0) * weight) / total for name, x in found.items()}


def token_count(batch: Batch) -> Array:
    return jnp.sum((batch["segments"] > 0).astype(jnp.float32))
