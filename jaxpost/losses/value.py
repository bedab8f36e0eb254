# SPDX-License-Identifier: Apache-2.0
"""The critic's loss, and how much it explains."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.losses.checks import same_shape


def value_loss(
    values: Float[Array, "*s"],
    returns: Float[Array, "*s"],
    old_values: Float[Array, "*s"] | None = None,
    clip: float | None = 0.2,
) -> Float[Array, "*s"]:
    """Half the squared error, the worse of two: `max((v - R)^2, (clip(v, v_old - clip, v_old + clip) - R)^2) / 2`.

    Of each token, in squared units of reward (PPO's reference implementation, https://github.com/openai/baselines; TRL,
    verl and OpenRLHF agree, the half included). Without `clip` or without the `old_values` of the rollout it is plain.
    Only `values` receive gradients; reduce it by `aggregate`, whose mask hides the rest.
    """
    same_shape("value_loss", values=values, returns=returns, old_values=old_values)
    values, returns = values.astype(jnp.float32), jax.lax.stop_gradient(returns.astype(jnp.float32))
    losses = (values - returns) ** 2
    if clip is not None and old_values is not None:
        old_values = jax.lax.stop_gradient(old_values.astype(jnp.float32))
        losses = jnp.maximum(losses, (jnp.clip(values, old_values - clip, old_values + clip) - returns) ** 2)
    return 0.5 * losses


def value_clipped(
    values: Float[Array, "*s"], returns: Float[Array, "*s"], old_values: Float[Array, "*s"], clip: float = 0.2
) -> Float[Array, "*s"]:
    """1 where the clipped error is the larger, so that the token has no gradient, else 0; its `masked_mean` is the
    fraction clipped (verl's `vf_clipfrac`)."""
    held = jnp.clip(values, old_values - clip, old_values + clip)
    return jax.lax.stop_gradient(((held - returns) ** 2 > (values - returns) ** 2).astype(jnp.float32))


def explained_variance(
    values: Float[Array, "*s"], returns: Float[Array, "*s"], mask: Float[Array, "*s"]
) -> Float[Array, ""]:
    """`1 - var(R - v) / var(R)` over the masked tokens: 1 is a perfect critic, 0 one that says nothing, below 0 worse
    than the mean. 0 where the returns do not vary. Of whole batches: those of parts do not add up."""
    inside = mask > 0
    returns = jnp.where(inside, returns.astype(jnp.float32), 0.0)
    errors = jnp.where(inside, returns - values.astype(jnp.float32), 0.0)
    count = jnp.maximum(jnp.sum(inside), 1)

    def variance(x: Array) -> Array:
        return jnp.sum(jnp.where(inside, x - jnp.sum(x) / count, 0.0) ** 2) / count

    total = variance(returns)
    return jnp.where(total > 0, 1.0 - variance(errors) / jnp.where(total > 0, total, 1.0), 0.0)
