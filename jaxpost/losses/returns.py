# SPDX-License-Identifier: Apache-2.0
"""Rewards of tokens, and what is still to come at each: returns and advantages along an answer.

`[b, t]` throughout: answers' tokens (or an environment's steps), the `mask` of those that were acted. A token under a
zero of the mask is skipped, as if the tokens around it were neighbours (verl's convention: an environment's words
between two turns), and gets 0. `gamma` is a number, or a discount for each step: 0 where an episode ended.
"""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.losses.checks import same_shape
from jaxpost.losses.ratios import hidden


def last_places(mask: Float[Array, "b t"]) -> Float[Array, "b t"]:
    """1 at the last masked token of each answer, else 0; an answer without any has none."""
    inside = (mask > 0).astype(jnp.int32)
    following = jnp.cumsum(inside[:, ::-1], axis=1)[:, ::-1]
    return ((inside == 1) & (following == 1)).astype(jnp.float32)


def token_rewards(
    scores: Float[Array, "b"],
    mask: Float[Array, "b t"],
    kl: Float[Array, "b t"] | None = None,
    coefficient: Float[Array, ""] | float = 0.0,
) -> Float[Array, "b t"]:
    """The reward of each token: `-coefficient kl_t`, and at the answer's last token its score.

    Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593). The score stands on the last token of the answer itself
    (verl, OpenRLHF), not on the padding behind it (TRL up to 1.12). `kl` (`kl_estimate`, nats) is that of the policy
    that sampled. No gradient.
    """
    rewards = last_places(mask) * scores.astype(jnp.float32)[:, None]
    if kl is not None:
        rewards = rewards - coefficient * hidden(kl.astype(jnp.float32), mask)
    return jax.lax.stop_gradient(rewards)


def gae(
    rewards: Float[Array, "b t"],
    values: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    gamma: Float[Array, "b t"] | float = 1.0,
    lam: float = 0.95,
    final_values: Float[Array, "b"] | None = None,
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """Generalised advantage estimates and the returns that a critic should learn, `(A, A + v)`.

    `d_t = r_t + gamma v_{t+1} - v_t`, `A_t = d_t + gamma lam A_{t+1}` (https://arxiv.org/abs/1506.02438).
    `final_values` are those of the states after the last step, 0 where none are given: an answer ends. With `lam` 1 the
    returns are Monte Carlo, with 0 they are TD(0)'s targets. As verl's, but before whitening (`whiten`), which its
    function includes; the returns are taken before it in any case. No gradient.
    """
    same_shape("gae", rewards=rewards, values=values, mask=mask)
    rewards, values = hidden(rewards.astype(jnp.float32), mask), hidden(values.astype(jnp.float32), mask)
    discounts = jnp.broadcast_to(jnp.asarray(gamma, jnp.float32), mask.shape) if jnp.ndim(gamma) == 0 else gamma
    if final_values is None:
        final_values = jnp.zeros(mask.shape[0], jnp.float32)

    def step(carry: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        following, advantage = carry
        reward, value, discount, inside = now
        here = reward + discount * following - value + discount * lam * advantage
        kept = (jnp.where(inside, value, following), jnp.where(inside, here, advantage))
        return kept, jnp.where(inside, here, 0.0)

    start = (final_values.astype(jnp.float32), jnp.zeros(mask.shape[0], jnp.float32))
    along = (rewards.T, values.T, jnp.asarray(discounts, jnp.float32).T, (mask > 0).T)
    _, advantages = jax.lax.scan(step, start, along, reverse=True)
    return jax.lax.stop_gradient((advantages.T, advantages.T + values))


def monte_carlo(
    rewards: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    gamma: Float[Array, "b t"] | float = 1.0,
    final_values: Float[Array, "b"] | None = None,
) -> Float[Array, "b t"]:
    """The discounted sum of the rewards from each token on: `R_t = r_t + gamma R_{t+1}`. No gradient."""
    return gae(rewards, jnp.zeros(mask.shape), mask, gamma=gamma, lam=1.0, final_values=final_values)[0]


def td_errors(
    rewards: Float[Array, "b t"],
    values: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    gamma: Float[Array, "b t"] | float = 1.0,
    final_values: Float[Array, "b"] | None = None,
) -> Float[Array, "b t"]:
    """What each step brought beyond what was expected: `r_t + gamma v_{t+1} - v_t`, TD(0)'s errors; plus the values
    they are its targets. No gradient."""
    return gae(rewards, values, mask, gamma=gamma, lam=0.0, final_values=final_values)[0]


def lambda_returns(
    rewards: Float[Array, "b t"],
    values: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    gamma: Float[Array, "b t"] | float = 1.0,
    lam: float = 0.95,
    final_values: Float[Array, "b"] | None = None,
) -> Float[Array, "b t"]:
    """TD(lambda)'s targets: `G_t = r_t + gamma ((1 - lam) v_{t+1} + lam G_{t+1})` (Sutton and Barto 2018, chapter 12,
    http://incompleteideas.net/book/the-book-2nd.html), which are gae's returns. No gradient."""
    return gae(rewards, values, mask, gamma=gamma, lam=lam, final_values=final_values)[1]
