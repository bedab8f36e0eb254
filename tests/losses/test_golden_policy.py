# SPDX-License-Identifier: Apache-2.0
"""Policy losses against TRL's and verl's own: values, gradients, and how much was clipped."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxpost.losses import (
    FAMILY,
    Counts,
    aggregate,
    cispo,
    clipped,
    kl_estimate,
    log_ratios,
    off_policy_mask,
    ppo,
    reinforce,
    sampler_weights,
    sapo,
    top_entropy_mask,
    vespo,
)
from tests.losses.golden import compare, ours, read

BUDGET, PADDED = 9, 7  # tokens: the longest answer allowed, and the width of the arrays
WIDE = {"low": 0.2, "high": 0.28}
PART = Counts(jnp.float32(50), jnp.float32(11))


def case(
    loss: Callable[..., jax.Array],
    how: str,
    advantages: str = "advantages",
    *,
    fraction: dict[str, Any] | None = None,
    weights: Callable | None = None,
    after: Callable | None = None,
    whole: Counts | None = None,
    length: int = BUDGET,
    **options: Any,
):
    """A case's value and gradient: losses, times weights, plus what comes after, aggregated."""

    def run(x: SimpleNamespace, given: Any) -> dict[str, Any]:
        def total(log_probs: jax.Array) -> jax.Array:
            each = loss(log_probs, x.old_log_probs, getattr(x, advantages), x.mask, **options)
            if weights is not None:
                each = each * weights(x, log_probs)
            if after is not None:
                each = each + after(x, log_probs)
            return aggregate(each, x.mask, how, whole, length=length)

        value, gradient = jax.value_and_grad(total)(x.log_probs)
        found = {"value": value, "gradient": gradient}
        if fraction is not None:
            level = fraction.get("level", "token")
            outside = clipped(x.log_probs, x.old_log_probs, getattr(x, advantages), x.mask, **WIDE | fraction)
            whole_answers = level == "sequence" and advantages == "advantages"
            found["clip_fraction"] = aggregate(outside, x.mask, "sequence_means" if whole_answers else "tokens")
        return found

    return run


def member(name: str):
    """A member of the family as it stands there. Of RLOO no fraction is on file."""
    clip = {} if name in ("cispo", "sapo", "vespo") else WIDE
    fraction = {"level": FAMILY[name].level} if clip and name != "rloo" else None
    return case(FAMILY[name].loss, FAMILY[name].how, fraction=fraction, **clip)


def corrected(x: SimpleNamespace, log_probs: jax.Array, level: str = "token") -> jax.Array:
    ratios = log_ratios(log_probs, x.old_log_probs, x.mask, level)
    return 0.3 * kl_estimate(log_probs, x.reference_log_probs, "k3", log_ratios=ratios)


def by_sampler(level: str, beyond: str):
    """The loss with weights, and the weights themselves."""

    def weigh(x: SimpleNamespace, log_probs: Any = None) -> jax.Array:
        return sampler_weights(x.old_log_probs, x.sampler_log_probs, x.mask, level=level, beyond=beyond, high=1.3)

    weighted = case(ppo, "tokens", weights=weigh, fraction={}, **WIDE)

    def run(x: SimpleNamespace, given: Any) -> dict[str, Any]:
        of_ours = weigh(x)
        weights = of_ours[:, :1] if level == "sequence" else of_ours
        return weighted(x, given) | {"weights": weights}

    return run


def vespo_by_sampler(level: str):
    def run(x: SimpleNamespace, given: Any) -> dict[str, Any]:
        weights = given["weights"][:, 0] if level == "sequence" else given["weights"]
        return case(partial(vespo, weights=weights), "tokens")(x, given)

    return run


VERL_MODES = {
    "token-mean": "tokens",
    "seq-mean-token-sum": "sequence_sums",
    "seq-mean-token-mean": "sequence_means",
}
TABLE = {
    **{f"trl/{name}": member(name) for name in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "vespo", "cispo", "gspo")},
    "trl/luspo": case(ppo, "sequence_sums", fraction={}, **WIDE),
    "trl/luspo-sequence": member("luspo"),
    "trl/rloo": member("rloo"),
    "trl/cispo-low_cap": case(cispo, "tokens", cap=1.5),
    "trl/cispo-sequence": case(cispo, "tokens", cap=1.2, level="sequence"),
    "trl/sapo-sequence": case(sapo, "sequence_means", level="sequence"),
    "trl/gspo-tokens": case(
        ppo, "sequence_means", "token_advantages", level="sequence", fraction={"level": "sequence"}, **WIDE
    ),
    "trl/dapo-tokens": case(ppo, "tokens", "token_advantages", fraction={}, **WIDE),
    "trl/dapo-delta": case(ppo, "tokens", cap=1.5, fraction={}, **WIDE),
    "trl/dapo-off_policy": case(
        ppo,
        "tokens",
        weights=lambda x, p: off_policy_mask(p, x.sampler_log_probs, x.advantages, x.mask, 0.05),
        **WIDE,
    ),
    "trl/dapo-top_entropy": case(
        ppo, "tokens", weights=lambda x, p: top_entropy_mask(x.entropies, x.mask, 0.3), **WIDE
    ),
    "trl/dapo-entropy": case(ppo, "tokens", after=lambda x, p: -0.1 * x.entropies, **WIDE),
    "trl/dapo-kl": case(ppo, "tokens", after=lambda x, p: 0.3 * kl_estimate(p, x.reference_log_probs), **WIDE),
    "trl/dapo-kl_corrected": case(ppo, "tokens", after=corrected, **WIDE),
    "trl/gspo-kl_corrected": case(
        ppo, "sequence_means", level="sequence", after=partial(corrected, level="sequence"), **WIDE
    ),
    **{
        f"verl/vanilla-{mode}{part}": case(ppo, how, "token_advantages", dual=3.0, fraction={}, whole=whole, **WIDE)
        for mode, how in VERL_MODES.items()
        for part, whole in (("", None), ("-part", PART))
    },
    "verl/vanilla-seq-mean-token-sum-norm": case(
        ppo, "constant", "token_advantages", dual=3.0, length=PADDED, fraction={}, **WIDE
    ),
    "verl/vanilla-seq-mean-token-sum-norm-part": case(
        ppo, "constant", "token_advantages", dual=3.0, fraction={}, whole=PART, **WIDE
    ),
    "verl/vanilla-dual": case(ppo, "tokens", dual=1.5, fraction={}, **WIDE),
    "verl/gspo": case(ppo, "sequence_means", level="sequence_token", **WIDE),
    "verl/gspo-tokens": case(
        ppo, "tokens", "token_advantages", level="sequence_token", fraction={"level": "sequence"}, **WIDE
    ),
    "verl/sapo": case(sapo, "sequence_means", negative=1.3),
    "verl/cispo": case(cispo, "tokens", floor=0.8, cap=1.28),
    "verl/gpg": case(lambda p, old, advantages, mask: reinforce(p, advantages, mask), "tokens", "token_advantages"),
    **{
        f"trl/dapo-{level}_{beyond}": by_sampler(level, beyond)
        for level in ("token", "sequence")
        for beyond in ("truncate", "mask")
    },
    **{f"trl/vespo-{level}_truncate": vespo_by_sampler(level) for level in ("token", "sequence")},
}


@pytest.fixture(scope="module")
def found():
    return ours("policy.json", TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_the_loss_is_theirs(name, found):
    compared = compare(read("policy.json")[1][name], found[name])
    assert {"value", "gradient"} <= set(compared)
