# SPDX-License-Identifier: Apache-2.0
"""Losses of pairs of answers without a reference: CPO, SimPO and AlphaPO, ORPO.

In go log-probabilities of whole answers, sums over their tokens, in nats; out comes one loss a pair, in float32.
"""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.faults import Fault
from jaxpost.losses.checks import Lengths, Scalar, known, positive, same_shape, within
from jaxpost.losses.preference import EXPONENT, smoothed

CPO_KINDS = ("sigmoid", "hinge", "ipo")


def cpo(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    nll: Float[Array, "*n"],
    *,
    beta: Scalar = 0.1,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
    alpha: float = 0.0,
    nll_weight: float = 1.0,
    chosen_lengths: Lengths | None = None,
    rejected_lengths: Lengths | None = None,
) -> Float[Array, "*n"]:
    """Contrastive preference optimisation: a preference without a reference, and the likelihood of the chosen answer.

    `preference + nll_weight * nll` (Xu et al. 2024, https://arxiv.org/abs/2401.08417), with D = chosen - rejected and
    e = label_smoothing: sigmoid `-(1 - e) log s(beta D) - e log s(-beta D)`, hinge `max(0, 1 - beta D)`, both of sums;
    ipo `(D - 1 / (2 beta))^2` of means over tokens, which needs the lengths, as in TRL. TRL's fourth kind is `simpo`.
    `alpha` other than 0 changes the log-probabilities (the means, for ipo) as in AlphaPO, see there.

    `nll` is what the caller takes for the chosen answer's negative log-likelihood: `-chosen / chosen_lengths`, or
    `-chosen / mean(chosen_lengths)`, whose mean over pairs is TRL's mean over the batch's tokens.
    Faults: an unknown kind, ipo without lengths, smoothing with a kind that has none, numbers out of range.
    """
    known("cpo", "kind", kind, CPO_KINDS)
    same_shape("cpo", chosen=chosen, rejected=rejected, nll=nll, chosen_lengths=chosen_lengths)
    same_shape("cpo", rejected=rejected, rejected_lengths=rejected_lengths)
    positive("cpo", beta=beta)
    within("cpo", "label_smoothing", label_smoothing, 0.0, 1.0)
    if label_smoothing and kind != "sigmoid":
        raise Fault(f"cpo: label_smoothing is {label_smoothing:g}, but {kind} has none; only sigmoid does")
    if kind == "ipo":
        if chosen_lengths is None or rejected_lengths is None:
            raise Fault("cpo: ipo also needs chosen_lengths and rejected_lengths")
        chosen, rejected = _means(chosen, chosen_lengths), _means(rejected, rejected_lengths)
    difference = _shaped(chosen, alpha) - _shaped(rejected, alpha)
    if kind == "sigmoid":
        preference = smoothed(beta * difference, label_smoothing)
    elif kind == "hinge":
        preference = jax.nn.relu(1 - beta * difference)
    else:
        preference = (difference - 0.5 / beta) ** 2
    return preference + nll_weight * nll.astype(jnp.float32)


def simpo(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    *,
    beta: Scalar,
    gamma: Scalar,
    label_smoothing: float = 0.0,
    alpha: float = 0.0,
) -> Float[Array, "*n"]:
    """Simple preference optimisation: mean log-probabilities must differ by a margin.

    `-(1 - e) log s(y) - e log s(-y)`, `y = beta (chosen / Lw - rejected / Ll) - gamma` (Meng et al. 2024,
    https://arxiv.org/abs/2405.14734; e = label_smoothing is TRL's addition, 0 in the paper). `gamma` is the margin
    itself, as in the paper and TRL; the authors' code gives gamma / beta. Their runs have beta from 2 to 10 and
    gamma / beta from 0.3 to 0.8; TRL's defaults are 0.1 and gamma 0.5.

    AlphaPO (Gupta et al. 2025, https://arxiv.org/abs/2501.03884) puts `(1 - p^-alpha) / alpha` for each mean
    log-probability `log p`; 0.25 is typical, 0 leaves it as it is. Exponents stop at 40. Faults: numbers out of range.
    """
    same_shape("simpo", chosen=chosen, rejected=rejected, chosen_lengths=chosen_lengths)
    same_shape("simpo", rejected=rejected, rejected_lengths=rejected_lengths)
    positive("simpo", beta=beta)
    within("simpo", "label_smoothing", label_smoothing, 0.0, 1.0)
    up, down = _shaped(_means(chosen, chosen_lengths), alpha), _shaped(_means(rejected, rejected_lengths), alpha)
    return smoothed(beta * (up - down) - gamma, label_smoothing)


def orpo(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    nll: Float[Array, "*n"],
    *,
    beta: Scalar = 0.1,
) -> Float[Array, "*n"]:
    """Odds-ratio preference optimisation: the chosen answer's likelihood, and the odds of the two answers.

    `nll - beta log s(log odds(p_w) - log odds(p_l))`, `odds(p) = p / (1 - p)`, p the geometric mean of an answer's
    token probabilities (Hong et al. 2024, https://arxiv.org/abs/2403.07691; the paper's lambda is beta). `nll` is the
    chosen answer's negative log-likelihood for each token, `-chosen / chosen_lengths` in the paper; TRL takes the mean
    over all tokens of the batch, the prompts' too. Mean log-probabilities count as -1e-7 at most, where odds end.
    """
    same_shape("orpo", chosen=chosen, rejected=rejected, nll=nll, chosen_lengths=chosen_lengths)
    same_shape("orpo", rejected=rejected, rejected_lengths=rejected_lengths)
    positive("orpo", beta=beta)
    odds = _log_odds(_means(chosen, chosen_lengths)) - _log_odds(_means(rejected, rejected_lengths))
    return nll.astype(jnp.float32) - beta * jax.nn.log_sigmoid(odds)


def _means(sums: Array, lengths: Array) -> Array:
    return sums.astype(jnp.float32) / jnp.maximum(lengths.astype(jnp.float32), 1.0)


def _shaped(log_probs: Array, alpha: float) -> Array:
    log_probs = log_probs.astype(jnp.float32)
    return log_probs if alpha == 0 else jnp.expm1(jnp.minimum(-alpha * log_probs, EXPONENT)) / -alpha


def _log_odds(log_probs: Array) -> Array:
    log_probs = jnp.minimum(log_probs, -1e-7)
    return log_probs - jnp.log(-jnp.expm1(log_probs))
