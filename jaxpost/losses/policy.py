# SPDX-License-Identifier: Apache-2.0
"""Policy losses of tokens: PPO's clip and the group-relative family around it.

All take the answers' tokens as `[b, t]`: `log_probs` (nats) of the policy, of the policy that sampled
(`old_log_probs`), `advantages` of answers `[b]` or of tokens `[b, t]`, and the `mask` of tokens that count. All give
losses `[b, t]`, 0 under a zero of the mask, to be reduced by `aggregate`; a loss of a whole answer stands at each of
its tokens. Only `log_probs` receive gradients. Arithmetic is float32, and log-ratios are clamped to +-`clamp` before
they are exponentiated, so values and gradients stay finite (verl's convention; TRL's is `clamp=None`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.faults import Fault
from jaxpost.losses.aggregate import How
from jaxpost.losses.ratios import Level, hidden, log_ratios, of_tokens


def ppo(
    log_probs: Float[Array, "b t"],
    old_log_probs: Float[Array, "b t"],
    advantages: Float[Array, "b"] | Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    cap: float | None = None,
    dual: float | None = None,
    level: Level = "token",
    clamp: float | None = 20.0,
) -> Float[Array, "b t"]:
    """The clipped surrogate: `max(-A r, -A clip(r, 1 - low, 1 + high))`, with r the policy's ratio (`log_ratios`).

    PPO (https://arxiv.org/abs/1707.06347), and with group advantages GRPO (https://arxiv.org/abs/2402.03300), DAPO
    (`high=0.28`, https://arxiv.org/abs/2503.14476), Dr. GRPO, BNPO: they differ in `aggregate`. With
    `level="sequence"` GSPO (https://arxiv.org/abs/2507.18071) and LUSPO (https://arxiv.org/abs/2602.05261), with
    `level="sequence_sum"` RLOO (https://arxiv.org/abs/2402.14740).

    - `cap`: r in the first term is at most that, which bounds the loss where A < 0 (TRL's `delta`; INTELLECT-2,
      https://arxiv.org/abs/2505.07291).
    - `dual`: where A < 0 the loss is at most `-A dual`, so that a token far off has no gradient (dual clip,
      https://arxiv.org/abs/1912.09729; on by default in verl with 3, off in TRL and OpenRLHF). Above 1.
    """
    if dual is not None and not dual > 1:
        raise Fault(f"ppo: dual={dual} must be above 1, or None for no second clip")
    advantages = of_tokens(advantages, mask)
    ratio = jnp.exp(log_ratios(log_probs, old_log_probs, mask, level, clamp))
    bounded = jnp.clip(ratio, 1 - low, 1 + high)
    if cap is not None:
        ratio = jnp.minimum(ratio, cap)
    losses = jnp.maximum(-advantages * ratio, -advantages * bounded)
    if dual is not None:
        losses = jnp.where(advantages < 0, jnp.minimum(losses, -advantages * dual), losses)
    return losses


def cispo(
    log_probs: Float[Array, "b t"],
    old_log_probs: Float[Array, "b t"],
    advantages: Float[Array, "b"] | Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    floor: float = 0.0,
    cap: float = 5.0,
    level: Level = "token",
    clamp: float | None = 20.0,
) -> Float[Array, "b t"]:
    """Weights are clipped, not gradients: `-sg(clip(r, floor, cap)) A log_probs` (MiniMax-M1's CISPO,
    https://arxiv.org/abs/2506.13585; a cap of 5: https://arxiv.org/abs/2510.13786).

    The bounds are those of r itself, as in TRL (its `epsilon_high` is the cap, and it has no floor). verl clips to
    `1 - clip_ratio_low` and `1 + clip_ratio_high`: say so here by `floor` and `cap`.
    """
    weights = jnp.clip(jnp.exp(log_ratios(log_probs, old_log_probs, mask, level, clamp)), floor, cap)
    own = hidden(log_probs.astype(jnp.float32), mask)
    return -jax.lax.stop_gradient(weights) * of_tokens(advantages, mask) * own


def sapo(
    log_probs: Float[Array, "b t"],
    old_log_probs: Float[Array, "b t"],
    advantages: Float[Array, "b"] | Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    positive: float = 1.0,
    negative: float = 1.05,
    level: Level = "token",
    clamp: float | None = 20.0,
) -> Float[Array, "b t"]:
    """A soft gate in place of the clip: `-(4 / tau) sigmoid(tau (r - 1)) A` (https://arxiv.org/abs/2511.20347).

    `tau` is `positive` where A > 0 and else `negative`; at r = 1 the gradient is the policy gradient. TRL and verl
    agree.
    """
    advantages = of_tokens(advantages, mask)
    ratio = jnp.exp(log_ratios(log_probs, old_log_probs, mask, level, clamp))
    tau = jnp.where(advantages > 0, positive, negative)
    return -4.0 / tau * jax.nn.sigmoid(tau * (ratio - 1.0)) * advantages


def vespo(
    log_probs: Float[Array, "b t"],
    old_log_probs: Float[Array, "b t"],
    advantages: Float[Array, "b"] | Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
    weights: Float[Array, "b"] | Float[Array, "b t"] | None = None,
    clamp: float = 20.0,
) -> Float[Array, "b t"]:
    """Answers weighted by a gamma density of their whole ratio w: `-sg(w^k exp(l (1 - w))) A log_probs`
    (VESPO, https://arxiv.org/abs/2602.10693; TRL's `vespo`).

    `log w` is the sum of the answer's log-ratios, each clamped to +-`clamp`, then held between log 1e-8 and 20. (k, l)
    is `positive` where A >= 0 and else `negative`; the weight is 1 at w = 1. `weights` (`sampler_weights`) enter w
    instead of multiplying the loss: those of tokens as `[b, t]`, those of answers as `[b]`.
    """
    advantages = of_tokens(advantages, mask)
    least = math.log(1e-8)
    log_w = jnp.sum(log_ratios(log_probs, old_log_probs, mask, "token", clamp) * mask, axis=1, keepdims=True)
    if weights is not None:
        logs = jnp.clip(jnp.log(jnp.maximum(weights.astype(jnp.float32), 1e-30)), least, 20.0)
        log_w = log_w + (logs[:, None] if logs.ndim == 1 else jnp.sum(hidden(logs, mask), axis=1, keepdims=True))
    log_w = jnp.broadcast_to(jax.lax.stop_gradient(jnp.clip(log_w, least, 20.0)), mask.shape)
    k = jnp.where(advantages >= 0, positive[0], negative[0])
    lam = jnp.maximum(jnp.where(advantages >= 0, positive[1], negative[1]), 1e-4)
    density = jnp.exp(lam + k * log_w - lam * jnp.exp(log_w))
    return -density * advantages * hidden(log_probs.astype(jnp.float32), mask)


def reinforce(
    log_probs: Float[Array, "b t"],
    advantages: Float[Array, "b"] | Float[Array, "b t"],
    mask: Float[Array, "b t"],
) -> Float[Array, "b t"]:
    """The policy gradient itself: `-A log_probs` (Williams 1992, https://doi.org/10.1007/BF00992696).

    For samples of the policy as it is. REINFORCE++ (https://arxiv.org/abs/2501.03262) is `ppo` with its own advantages.
    verl's `gpg`.
    """
    return -of_tokens(advantages, mask) * hidden(log_probs.astype(jnp.float32), mask)


@dataclass(frozen=True)
class Member:
    """One of a family of policy losses: its losses of tokens, how its paper aggregates them, and whose ratio it takes:
    pass that `level` to `clipped` and, for a corrected KL, to `log_ratios`."""

    loss: Callable[..., Float[Array, "b t"]]
    how: How
    level: Level = "token"


FAMILY = {
    "grpo": Member(ppo, "sequence_means"),
    "bnpo": Member(ppo, "tokens"),
    "dr_grpo": Member(ppo, "constant"),
    "dapo": Member(ppo, "tokens"),
    "gspo": Member(partial(ppo, level="sequence"), "sequence_means", "sequence"),
    "luspo": Member(partial(ppo, level="sequence"), "sequence_sums", "sequence"),
    "rloo": Member(partial(ppo, level="sequence_sum"), "sequence_means", "sequence_sum"),
    "cispo": Member(cispo, "tokens"),
    "sapo": Member(sapo, "sequence_means"),
    "vespo": Member(vespo, "tokens"),
}
"""The group-relative family by the names that TRL and the papers use; a member's loss takes its function's options."""
