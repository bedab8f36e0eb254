# SPDX-License-Identifier: Apache-2.0
"""Losses of a reward model: its scores of answers against what people said of them."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Bool, Float, Int
from jaxpost.losses.checks import Scalar, known, positive, same_shape, within
from jaxpost.losses.token import cross_entropy

log_sigmoid = jax.nn.log_sigmoid
TIES = ("rao_kupper", "davidson")
REGRESSIONS = ("squared", "huber")
TWO_CLASS_REWARDS = ("logit", "log_odds", "probability")


def bradley_terry(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    *,
    margin: float | Float[Array, "*n"] = 0.0,
    centring: float = 0.0,
    agreement: float | Float[Array, "*n"] = 1.0,
) -> Float[Array, "*n"]:
    """The negative log-likelihood of a preference, from two scores (in nats: their difference is a log-odds).

    `-p log s(d) - (1 - p) log s(-d) + centring (chosen + rejected)^2` with `d = chosen - rejected - margin` (Ouyang
    et al. 2022, https://arxiv.org/abs/2203.02155, after Bradley and Terry 1952). `margin` is for degrees of preference
    (Touvron et al. 2023, https://arxiv.org/abs/2307.09288); `centring` keeps scores about 0, 0.01 is
    customary (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244). Both as in TRL. p is the `agreement`: the
    share of labellers who prefer the chosen answer, 1 for a single one.
    """
    same_shape("bradley_terry", chosen=chosen, rejected=rejected, margin=_array(margin), agreement=_array(agreement))
    within("bradley_terry", "agreement", agreement, 0.0, 1.0)
    chosen, rejected = chosen.astype(jnp.float32), rejected.astype(jnp.float32)
    d = chosen - rejected - margin
    loss = -agreement * log_sigmoid(d) - (1.0 - agreement) * log_sigmoid(-d)
    return loss + centring * (chosen + rejected) ** 2 if centring else loss


def bradley_terry_ties(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    tied: Bool[Array, "*n"],
    *,
    tie_rate: Scalar,
    kind: str = "rao_kupper",
) -> Float[Array, "*n"]:
    """The negative log-likelihood of preferences of which some are ties, from two scores; in nats.

    `tie_rate`, between 0 and 1, is the probability of a tie between answers of one score (it can be learned). With
    d = chosen - rejected:

    - rao_kupper: `P(chosen) = s(d - h)`, `P(tie) = (e^(2h) - 1) s(d - h) s(-d - h)`, h = 2 artanh(tie_rate): who
      prefers an answer sees a difference of at least h (Rao and Kupper 1967,
      https://doi.org/10.1080/01621459.1967.10482901).
    - davidson: `P(chosen) : P(tie) : P(rejected) = e^(d/2) : v : e^(-d/2)`, v = 2 tie_rate / (1 - tie_rate): ties
      are as likely as the geometric mean of both ways (Davidson 1970, https://doi.org/10.1080/01621459.1970.10481082).

    Which answer of a tie is called chosen does not matter. Both kinds go to Bradley and Terry's as tie_rate goes to 0.
    """
    same_shape("bradley_terry_ties", chosen=chosen, rejected=rejected, tied=tied)
    known("bradley_terry_ties", "kind", kind, TIES)
    within("bradley_terry_ties", "tie_rate", tie_rate, 0.0, 1.0, open_at=("low", "high"))
    rate = jnp.asarray(tie_rate, jnp.float32)
    d = chosen.astype(jnp.float32) - rejected.astype(jnp.float32)
    if kind == "davidson":
        tie = jnp.broadcast_to(jnp.log(2 * rate) - jnp.log1p(-rate), d.shape)
        normaliser = jax.nn.logsumexp(jnp.stack([d / 2, tie, -d / 2]), axis=0)
        return normaliser - jnp.where(tied, tie, d / 2)
    h = 2 * jnp.arctanh(rate)
    preferred = log_sigmoid(d - h)
    tie = jnp.log(4 * rate) - 2 * jnp.log1p(-rate) + preferred + log_sigmoid(-d - h)
    return -jnp.where(tied, tie, preferred)


def ranked_pairs(ranks: Int[Array, "*n k"], mask: Float[Array, "*n k"] | None = None) -> Bool[Array, "*n k k"]:
    """Whether answer i of a prompt was ranked before answer j (1 is best), both being there."""
    there = jnp.ones(ranks.shape, bool) if mask is None else mask != 0
    return (ranks[..., :, None] < ranks[..., None, :]) & there[..., :, None] & there[..., None, :]


def rankings(
    scores: Float[Array, "*n k"],
    ranks: Int[Array, "*n k"],
    mask: Float[Array, "*n k"] | None = None,
    *,
    centring: float = 0.0,
) -> Float[Array, "*n"]:
    """Of every prompt the mean Bradley-Terry loss of all pairs of its k answers that the ranking tells apart.

    `1 / |P| sum over (i, j) in P of -log s(score_i - score_j)`, `P = ranked_pairs(ranks, mask)`: N choose 2 pairs
    without ties, so each prompt counts once however many answers it has (Ouyang et al. 2022,
    https://arxiv.org/abs/2203.02155, equation 1). Equal ranks make no pair: give them to `bradley_terry_ties`. A
    prompt without pairs has loss 0; leave it out of a mean by `ranked_pairs(...).any((-2, -1))`. `centring` is that
    of `bradley_terry`, a mean over the same pairs.
    """
    same_shape("rankings", scores=scores, ranks=ranks, mask=mask)
    pairs = ranked_pairs(ranks, mask)
    scores = scores.astype(jnp.float32)
    # What is not there may be anything, NaN too: it must not reach a gradient.
    scores = scores if mask is None else jnp.where(mask != 0, scores, 0.0)
    first, second = (jnp.broadcast_to(x, pairs.shape) for x in (scores[..., :, None], scores[..., None, :]))
    losses = jnp.where(pairs, bradley_terry(first, second, centring=centring), 0.0)
    return jnp.sum(losses, axis=(-2, -1)) / jnp.maximum(jnp.sum(pairs, axis=(-2, -1)), 1)


def pointwise(
    scores: Float[Array, "*n"], targets: Float[Array, "*n"], *, kind: str = "squared", delta: float = 1.0
) -> Float[Array, "*n"]:
    """Regression of a score on a given one: squared `(s - t)^2`; huber `|s - t|^2 / 2` up to `delta`, then
    `delta (|s - t| - delta / 2)` (Huber 1964, https://doi.org/10.1214/aoms/1177703732). In the targets' units."""
    same_shape("pointwise", scores=scores, targets=targets)
    known("pointwise", "kind", kind, REGRESSIONS)
    positive("pointwise", delta=delta)
    error = scores.astype(jnp.float32) - targets.astype(jnp.float32)
    if kind == "squared":
        return error**2
    near = jnp.clip(error, -delta, delta)
    return near * (error - near / 2)


def two_class(logits: Float[Array, "*n 2"], good: Bool[Array, "*n"]) -> Float[Array, "*n"]:
    """The negative log-likelihood, in nats, of an answer being good, class 1, or not, class 0: single answers with
    thumbs up or down, and sequence classifiers that serve as reward models."""
    return cross_entropy(logits, good.astype(jnp.int32))


def two_class_reward(logits: Float[Array, "*n 2"], *, kind: str = "logit") -> Float[Array, "*n"]:
    """A reward from two-class logits: the positive class's `logit`, as PPO recipes with sentiment classifiers take it;
    its `probability`, between 0 and 1; or the `log_odds`, in nats, which no shift of both logits changes."""
    known("two_class_reward", "kind", kind, TWO_CLASS_REWARDS)
    logits = logits.astype(jnp.float32)
    log_odds = logits[..., 1] - logits[..., 0]
    return {"logit": logits[..., 1], "log_odds": log_odds, "probability": jax.nn.sigmoid(log_odds)}[kind]


def _array(x: float | Array) -> Array | None:
    return None if isinstance(x, int | float) else x
