# SPDX-License-Identifier: Apache-2.0
"""From losses of tokens to one number, with the denominators of the whole batch."""

from typing import Literal, NamedTuple

import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.faults import Fault
from jaxpost.losses.checks import known, same_shape
from jaxpost.losses.reduce import masked_mean

How = Literal["tokens", "sequence_means", "sequence_sums", "constant"]
HOWS = ("tokens", "sequence_means", "sequence_sums", "constant")


class Counts(NamedTuple):
    """What losses of a whole batch are divided by: its masked tokens, and its sequences that have any."""

    tokens: Float[Array, ""]
    sequences: Float[Array, ""]


def counts(mask: Float[Array, "b t"]) -> Counts:
    """The denominators of a batch, each at least 1. Take them of the whole batch, then cut it."""
    mask = mask.astype(jnp.float32)
    sequences = jnp.sum(jnp.any(mask > 0, axis=1).astype(jnp.float32))
    return Counts(jnp.maximum(jnp.sum(mask), 1.0), jnp.maximum(sequences, 1.0))


def aggregate(
    losses: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    how: How = "tokens",
    whole: Counts | None = None,
    *,
    length: int | None = None,
) -> Float[Array, ""]:
    """One number from losses of tokens, l, under a mask, m; in float32.

    - `tokens`: `sum(l m) / tokens`: every token counts the same (DAPO https://arxiv.org/abs/2503.14476; TRL `dapo`;
      verl `token-mean`).
    - `sequence_means`: `sum_i(sum_t(l m) / sum_t(m)) / sequences`: every answer counts the same (GRPO
      https://arxiv.org/abs/2402.03300; TRL `grpo`; verl `seq-mean-token-mean`).
    - `sequence_sums`: `sum(l m) / sequences`: long answers count more (TRL `luspo`; verl `seq-mean-token-sum`).
    - `constant`: `sum(l m) / (sequences * length)`, with the length that answers may have, not that of this batch's
      padding (Dr. GRPO https://arxiv.org/abs/2503.20783; TRL `dr_grpo`; verl `seq-mean-token-sum-norm` with
      `loss_scale_factor`, whose default is the padded length).

    Give `whole`, the `counts` of the whole batch, when these rows are a part of it (a microbatch, a shard): then parts
    add up to the loss of the whole, however it was cut and padded. Without it the rows given are the whole; TRL's
    `bnpo` is `tokens` with the counts of each part, which makes it depend on the cut.

    Rows without any masked token are no sequences, as in verl. TRL counts them: its number is
    `whole._replace(sequences=rows)`. Values under a zero of the mask do not matter, NaN included.
    """
    known("aggregate", "way", how, HOWS)
    same_shape("aggregate", losses=losses, mask=mask)
    mask = mask.astype(jnp.float32)
    tokens, sequences = whole or counts(mask)
    if how == "tokens":
        return masked_mean(losses, mask, tokens)
    if how == "constant":
        if length is None or length <= 0:
            raise Fault(f"aggregate: 'constant' divides by the length that answers may have, above 0, not by {length}")
        return masked_mean(losses, mask, sequences * length)
    if how == "sequence_means":
        own = jnp.sum(mask, axis=1, keepdims=True)
        return masked_mean(losses, mask / jnp.where(own == 0, 1.0, own), sequences)
    return masked_mean(losses, mask, sequences)
