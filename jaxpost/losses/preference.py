# SPDX-License-Identifier: Apache-2.0
"""Losses of pairs of answers against a reference: DPO and its kinds.

In go log-probabilities of whole answers, sums over their tokens, in nats; out comes one loss a pair, in float32. Arrays
may have any shape, `[n]` pairs or `[b, n]` pairs of packed rows, as long as all have the same.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float
from jaxpost.faults import Fault
from jaxpost.losses.checks import Lengths, Scalar, known, positive, same_shape, within

log_sigmoid = jax.nn.log_sigmoid
sigmoid = jax.nn.sigmoid

EXPONENT = 40.0
"""Where exponents are cut off: e^40 squared, and its gradient, are still finite in float32."""


def dpo(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    reference_chosen: Float[Array, "*n"],
    reference_rejected: Float[Array, "*n"],
    *,
    beta: Scalar = 0.1,
    kind: str | Mapping[str, float] = "sigmoid",
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    alpha: float = 0.5,
    tau: float = 0.05,
    chosen_lengths: Lengths | None = None,
    rejected_lengths: Lengths | None = None,
    nll: Float[Array, "*n"] | None = None,
    mask: Float[Array, "*n"] | None = None,
) -> Float[Array, "*n"]:
    """Direct preference optimisation: the loss of every pair, from four sums of log-probabilities.

    With c and r the log-ratios of policy to reference of the chosen and the rejected answer, z = beta (c - r),
    s = sigmoid, e = label_smoothing, Lw and Ll the two lengths in tokens, the kinds are

    - sigmoid: `-(1 - e) log s(z) - e log s(-z)`. Rafailov et al. 2023, https://arxiv.org/abs/2305.18290; with e > 0
      conservative DPO, as in OpenRLHF (TRL 1.x has no smoothing here).
    - hinge: `max(0, 1 - z)`. SLiC, Zhao et al. 2023, https://arxiv.org/abs/2305.10425.
    - ipo: `(c / Lw - r / Ll - 1 / (2 beta))^2`, averages over tokens as in TRL and, by its account, the paper's own
      experiments; ipo_sum: `(c - r - 1 / (2 beta))^2`, the formula as printed and as in OpenRLHF.
      Azar et al. 2023, https://arxiv.org/abs/2310.12036.
    - exo_pair: `s(z) (log s(z) - log(1 - e)) + s(-z) (log s(-z) - log e)`, e > 0, customarily 1e-3.
      Ji et al. 2024, https://arxiv.org/abs/2402.00856.
    - nca_pair: `-log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2`. Chen et al. 2024,
      https://arxiv.org/abs/2402.05369.
    - robust: `(-(1 - e) log s(z) + e log s(-z)) / (1 - 2 e)`, e < 1/2: unbiased where a share e of the labels is
      flipped. Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409.
    - bco_pair: `-log s(beta c) - log s(-beta r)`; with a running mean: `bco`. Jung et al. 2024,
      https://arxiv.org/abs/2404.04656.
    - sppo_hard: `(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2`. Wu et al. 2024, https://arxiv.org/abs/2405.00675.
    - aot, aot_unpaired: as sigmoid of `beta (x - y)`, x and y being matched by rank in the batch: of the policy's
      log-probabilities, chosen minus rejected, and the reference's; or of all c and all r. A pair's loss stands where
      its x (its c) does. Melnyk et al. 2024, https://arxiv.org/abs/2406.05882.
    - apo_zero: `s(-beta c) + s(beta r)`; apo_down: `s(beta c) + s(-z)`. D'Oosterlinck et al. 2024,
      https://arxiv.org/abs/2408.06266.
    - discopop: `-(1 - g) log s(z) + g exp(-z)`, g = s(z / tau). Lu et al. 2024, https://arxiv.org/abs/2406.08414.
    - sft: `nll`, whatever the caller takes for it: `-chosen / chosen_lengths` is a mean for every answer,
      `-chosen / mean(chosen_lengths)` makes a mean over pairs TRL's mean over the batch's tokens.
    - sigmoid_norm: as sigmoid of `beta (c / Lw - r / Ll)`.

    A mapping adds kinds up by weight: MPO (Wang et al. 2024, https://arxiv.org/abs/2411.10442) is
    `kind={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}`.

    f-DPO (Wang et al. 2023, https://arxiv.org/abs/2309.16240) puts f'(ratio) for the log-ratio x: with `divergence`
    forward_kl `1 - exp(-x)`, js `log 2 + log s(x)`, alpha `(exp((alpha - 1) x) - 1) / (alpha - 1)`, in kinds that
    only look at the difference of the two answers, where the partition function cancels. Exponents stop at 40.

    aot and aot_unpaired couple the pairs of a batch: it must not be split into microbatches, and pairs that are not
    there get a 0 in `mask`. All other kinds are by pair and leave masks to `masked_mean`. Faults: unknown kinds and
    divergences, a kind without what it needs, smoothing or a divergence where no kind heeds it, numbers out of range.
    """
    weights = {kind: 1.0} if isinstance(kind, str) else dict(kind)
    arrays = {"chosen": chosen, "rejected": rejected}
    arrays |= {"reference_chosen": reference_chosen, "reference_rejected": reference_rejected}
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    same_shape("dpo", **arrays, **lengths, nll=nll, mask=mask)
    positive("dpo", beta=beta, tau=tau)
    _check_kinds(weights, label_smoothing, divergence)
    for name in weights:
        missing = [x for x, value in {**lengths, "nll": nll}.items() if x in KINDS[name].needs and value is None]
        if missing:
            raise Fault(f"dpo: {name} also needs {' and '.join(missing)}")
    policy, reference = (_difference(chosen, rejected), _difference(reference_chosen, reference_rejected))
    c, r = _difference(chosen, reference_chosen), _difference(rejected, reference_rejected)
    better, worse = (_derivative(x, divergence, alpha) for x in (c, r))
    lw, ll = (None if x is None else jnp.maximum(x.astype(jnp.float32), 1.0) for x in lengths.values())
    pairs = _Pairs(policy, reference, c, r, better, worse, lw, ll, nll, mask, beta, label_smoothing, tau)
    losses = jnp.zeros_like(c)
    for name, weight in weights.items():
        losses = losses + weight * KINDS[name].loss(pairs)
    return losses


class _Pairs(NamedTuple):
    """What the kinds are functions of."""

    policy: Array  # log-probability of the chosen answer less that of the rejected one
    reference: Array
    chosen: Array  # log-ratios
    rejected: Array
    better: Array  # what the divergence makes of them
    worse: Array
    chosen_lengths: Array | None
    rejected_lengths: Array | None
    nll: Array | None
    mask: Array | None
    beta: Scalar
    smoothing: float
    tau: float

    @property
    def z(self) -> Array:
        return self.beta * (self.better - self.worse)


class _Kind(NamedTuple):
    loss: Callable[[_Pairs], Array]
    by_difference: bool = False  # of the two answers: what a divergence may be put into
    smooths: bool = False
    needs: tuple[str, ...] = ()


def smoothed(z: Array, smoothing: float) -> Array:
    """The negative log-likelihood of a preference with log-odds z, of which a share of `smoothing` is the other way."""
    likely = -log_sigmoid(z)
    return (1 - smoothing) * likely - smoothing * log_sigmoid(-z) if smoothing else likely


def _per_token(p: _Pairs) -> Array:
    assert p.chosen_lengths is not None and p.rejected_lengths is not None
    return p.better / p.chosen_lengths - p.worse / p.rejected_lengths


def _exo(p: _Pairs) -> Array:
    right = sigmoid(p.z) * (log_sigmoid(p.z) - math.log1p(-p.smoothing))
    return right + sigmoid(-p.z) * (log_sigmoid(-p.z) - math.log(p.smoothing))


def _robust(p: _Pairs) -> Array:
    return (-(1 - p.smoothing) * log_sigmoid(p.z) + p.smoothing * log_sigmoid(-p.z)) / (1 - 2 * p.smoothing)


def _nca(p: _Pairs) -> Array:
    up, down = p.beta * p.chosen, p.beta * p.rejected
    return -log_sigmoid(up) - 0.5 * log_sigmoid(-up) - 0.5 * log_sigmoid(-down)


def _sppo(p: _Pairs) -> Array:
    return (p.chosen - 0.5 / p.beta) ** 2 + (p.rejected + 0.5 / p.beta) ** 2


def _discopop(p: _Pairs) -> Array:
    gate = p.z / p.tau
    # One exponent for the product: exp(-z) alone overflows where the gate is shut.
    exponential = jnp.exp(jnp.minimum(log_sigmoid(gate) - p.z, EXPONENT))
    return -sigmoid(-gate) * log_sigmoid(p.z) + exponential


def _sft(p: _Pairs) -> Array:
    assert p.nll is not None
    return p.nll.astype(jnp.float32)


def _by_rank(x: Array, y: Array, p: _Pairs) -> Array:
    """x minus the y of its rank, among those that are there, and then as `sigmoid`."""
    shape, x, y = x.shape, x.ravel(), y.ravel()
    there = jnp.ones(x.shape, bool) if p.mask is None else p.mask.ravel() != 0
    x, y = jnp.where(there, x, 0.0), jnp.where(there, y, 0.0)
    rank = jnp.argsort(jnp.argsort(jnp.where(there, x, jnp.inf)))
    matched = y[jnp.argsort(jnp.where(there, y, jnp.inf))][rank]
    return smoothed(p.beta * jnp.where(there, x - matched, 0.0), p.smoothing).reshape(shape)


LENGTHS = ("chosen_lengths", "rejected_lengths")
KINDS = {
    "sigmoid": _Kind(lambda p: smoothed(p.z, p.smoothing), by_difference=True, smooths=True),
    "hinge": _Kind(lambda p: jax.nn.relu(1 - p.z), by_difference=True),
    "ipo": _Kind(lambda p: (_per_token(p) - 0.5 / p.beta) ** 2, by_difference=True, needs=LENGTHS),
    "ipo_sum": _Kind(lambda p: (p.better - p.worse - 0.5 / p.beta) ** 2, by_difference=True),
    "exo_pair": _Kind(_exo, by_difference=True, smooths=True),
    "nca_pair": _Kind(_nca),
    "robust": _Kind(_robust, by_difference=True, smooths=True),
    "bco_pair": _Kind(lambda p: -log_sigmoid(p.beta * p.chosen) - log_sigmoid(-p.beta * p.rejected)),
    "sppo_hard": _Kind(_sppo),
    "aot": _Kind(lambda p: _by_rank(p.policy, p.reference, p), smooths=True),
    "aot_unpaired": _Kind(lambda p: _by_rank(p.chosen, p.rejected, p), smooths=True),
    "apo_zero": _Kind(lambda p: sigmoid(-p.beta * p.chosen) + sigmoid(p.beta * p.rejected)),
    "apo_down": _Kind(lambda p: sigmoid(p.beta * p.chosen) + sigmoid(-p.beta * (p.chosen - p.rejected))),
    "discopop": _Kind(_discopop, by_difference=True),
    "sft": _Kind(_sft, by_difference=True, needs=("nll",)),
    "sigmoid_norm": _Kind(
        lambda p: smoothed(p.beta * _per_token(p), p.smoothing), by_difference=True, smooths=True, needs=LENGTHS
    ),
}
DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")


def _check_kinds(weights: Mapping[str, float], smoothing: float, divergence: str) -> None:
    if not weights:
        raise Fault("dpo: kind is an empty mapping; name at least one kind with its weight")
    for name in weights:
        known("dpo", "kind", name, KINDS)
    known("dpo", "divergence", divergence, DIVERGENCES)
    listed = ", ".join(weights)
    if smoothing and not any(KINDS[name].smooths for name in weights):
        able = ", ".join(name for name, kind in KINDS.items() if kind.smooths)
        raise Fault(f"dpo: label_smoothing is {smoothing:g}, but {listed} has none (these do: {able})")
    within("dpo", "label_smoothing", smoothing, 0.0, 1.0)
    if "exo_pair" in weights:
        within("dpo", "label_smoothing of exo_pair", smoothing, 0.0, 1.0, open_at=("low", "high"))
    if "robust" in weights:
        within("dpo", "label_smoothing of robust", smoothing, 0.0, 0.5, open_at=("high",))
    unable = [name for name in weights if not KINDS[name].by_difference]
    if divergence != "reverse_kl" and unable:
        able = ", ".join(name for name, kind in KINDS.items() if kind.by_difference)
        raise Fault(f"dpo: {', '.join(unable)} has no form for divergence {divergence!r} (these have: {able})")


def _difference(x: Array, y: Array) -> Array:
    return x.astype(jnp.float32) - y.astype(jnp.float32)


def _derivative(x: Array, divergence: str, alpha: float) -> Array:
    """f' of the ratio exp(x)."""
    if divergence == "js":
        return math.log(2) + log_sigmoid(x)
    if divergence == "reverse_kl" or (divergence == "alpha" and abs(alpha - 1) < 1e-6):
        return x
    power = -1.0 if divergence == "forward_kl" else alpha - 1
    return jnp.expm1(jnp.minimum(power * x, EXPONENT)) / power
