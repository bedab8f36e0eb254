# SPDX-License-Identifier: Apache-2.0
"""Returns, advantages, KL and value losses against verl's and TRL's own; and that no golden case is left out."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.losses import (
    adaptive_coefficient,
    aggregate,
    combined_rewards,
    decoupled_advantages,
    full_kl,
    gae,
    group_advantages,
    kl_estimate,
    leave_one_out,
    length_weighted_advantages,
    masked_mean,
    monte_carlo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    td_errors,
    token_rewards,
    value_clipped,
    value_loss,
    whiten,
)
from tests.losses import test_golden_policy
from tests.losses.golden import compare, ours, read

GROUPS = {"even": (0, 0, 0, 0, 1, 1, 1, 1), "uneven": (0, 0, 0, 1, 1, 1, 1, 2)}
WEIGHTS = jnp.array([1.0, 0.5])


def gae_case(mask: str, gamma: float, lam: float):
    """verl whitens; where a limit has a function of its own, that one is asked."""

    def run(x: SimpleNamespace, given: Any) -> dict[str, Any]:
        shown = getattr(x, mask)
        advantages, returns = gae(x.token_rewards, x.values, shown, gamma=gamma, lam=lam)
        if lam == 1:
            returns = monte_carlo(x.token_rewards, shown, gamma=gamma)
        if lam == 0:
            advantages = td_errors(x.token_rewards, x.values, shown, gamma=gamma)
        return {"advantages": whiten(advantages, shown), "returns": returns}

    return run


def plus_plus(x: SimpleNamespace, given: Any) -> dict[str, Any]:
    returns = monte_carlo(x.token_rewards, x.holes, gamma=0.9)
    return {"advantages": reinforce_plus_plus(x.token_rewards, x.holes, gamma=0.9), "returns": returns}


def by_verl(groups: str) -> dict[str, Any]:
    """verl repeats an answer's advantage on its tokens, and keeps the reward of one alone."""
    index = jnp.array(GROUPS[groups])

    def spread(x: SimpleNamespace, advantages: jax.Array) -> dict[str, Any]:
        return {"value": advantages[:, None] * x.mask}

    return {
        f"verl/grpo-{groups}": lambda x, _: spread(x, group_advantages(x.rewards, index, eps=1e-6, lone="keep")),
        f"verl/grpo_unscaled-{groups}": lambda x, _: spread(
            x, group_advantages(x.rewards, index, scale="none", lone="keep", count=3)
        ),
        f"verl/rloo-{groups}": lambda x, _: spread(x, leave_one_out(x.rewards, index, lone="keep")),
        f"verl/reinforce_plus_plus_baseline-{groups}": lambda x, _: {
            "value": reinforce_plus_plus_baseline(x.rewards, x.mask, index, lone="keep")
        },
    }


def by_trl(rewards: str) -> dict[str, Any]:
    index = jnp.array(GROUPS["even"])
    table: dict[str, Any] = {
        f"trl/grpo-{rewards}-{scale}": lambda x, _, scale=scale: {
            "value": group_advantages(getattr(x, rewards), index, scale=scale)
        }
        for scale in ("group", "batch", "none")
    }
    return table | {f"trl/rloo-{rewards}": lambda x, _: {"value": leave_one_out(getattr(x, rewards), index)}}


def estimate(kind: str):
    def run(x: SimpleNamespace, given: Any) -> dict[str, Any]:
        def total(log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
            options = {"straight_through": kind.endswith("+"), "limit": 10.0 if kind.startswith("k3") else None}
            value = kl_estimate(log_probs, x.reference_log_probs, kind.rstrip("+"), **options)
            return jnp.sum(value), value

        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(8 * x.logits[..., 0])
        return {"value": value, "gradient": gradient}

    return run


def whole_kl(x: SimpleNamespace, given: Any) -> dict[str, Any]:
    other = x.logits[..., ::-1]
    gradients = jax.grad(lambda p, q: jnp.sum(full_kl(p, q)), (0, 1))(x.logits, other)
    return {"value": full_kl(x.logits, other), "gradient": gradients[0], "other_gradient": gradients[1]}


def adaptive(x: SimpleNamespace, given: Any) -> dict[str, Any]:
    coefficient, seen = jnp.float32(0.2), []
    for kl in (1.0, 5.5, 6.5, 30.0, -2.0):
        coefficient = adaptive_coefficient(coefficient, kl, 256, target=6.0, horizon=10_000)
        seen.append(coefficient)
    return {"value": jnp.stack(seen)}


def value(how: str):
    def run(x: SimpleNamespace, given: Any) -> dict[str, Any]:
        def total(values: jax.Array) -> jax.Array:
            return aggregate(value_loss(values, x.returns, x.old_values, 0.2), x.mask, how)

        found, gradient = jax.value_and_grad(total)(x.values)
        fraction = masked_mean(value_clipped(x.values, x.returns, x.old_values, 0.2), x.mask)
        return {"value": found, "gradient": gradient, "clip_fraction": fraction}

    return run


def rloo_with_kl(x: SimpleNamespace, given: Any) -> dict[str, Any]:
    kl = kl_estimate(x.old_log_probs, x.reference_log_probs, "k1")
    rewards = jnp.sum(token_rewards(x.rewards, x.mask, kl, 0.05), axis=1)
    return {"value": leave_one_out(rewards, jnp.array(GROUPS["even"]))}


TABLE: dict[str, Any] = {
    "verl/gae-mask-0.9-0.8": gae_case("mask", 0.9, 0.8),
    "verl/gae-holes-1.0-0.95": gae_case("holes", 1.0, 0.95),
    "verl/gae-holes-0.97-1.0": gae_case("holes", 0.97, 1.0),
    "verl/gae-holes-0.97-0.0": gae_case("holes", 0.97, 0.0),
    "verl/reinforce_plus_plus": plus_plus,
    "verl/token_rewards": lambda x, _: {
        "value": token_rewards(x.rewards, x.mask, kl_estimate(x.old_log_probs, x.reference_log_probs, "k1"), 0.1)
    },
    "verl/whiten-True": lambda x, _: {"value": whiten(x.values, x.mask)},
    "verl/whiten-False": lambda x, _: {"value": whiten(x.values, x.mask, shift_mean=False)},
    **by_verl("even"),
    **by_verl("uneven"),
    "verl/opo-even": lambda x, _: {
        "value": length_weighted_advantages(x.rewards, x.mask, jnp.array(GROUPS["even"]))[:, None] * x.mask
    },
    **by_trl("rewards"),
    **by_trl("missing"),
    **by_trl("alone"),
    "trl/sum_then_normalize": lambda x, _: {
        "value": group_advantages(combined_rewards(x.several, WEIGHTS), jnp.array(GROUPS["even"]))
    },
    "trl/normalize_then_sum": lambda x, _: {
        "value": decoupled_advantages(x.several, WEIGHTS, jnp.array(GROUPS["even"]))
    },
    "trl/rloo-kl": rloo_with_kl,
    **{f"verl/{kind}": estimate(kind) for kind in ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")},
    "torch/full_kl": whole_kl,
    "verl/adaptive": adaptive,
    "verl/value-token-mean": value("tokens"),
    "verl/value-seq-mean-token-mean": value("sequence_means"),
}


@pytest.fixture(scope="module")
def found():
    return ours("policy.json", TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_the_numbers_are_theirs(name, found):
    wanted = read("policy.json")[1][name]
    compared = compare(wanted, found[name])
    assert compared == sorted(set(wanted) - {"name"})


def test_every_golden_case_is_compared():
    named = set(read("policy.json")[1])
    assert len(named) == 86 and named == set(TABLE) | set(test_golden_policy.TABLE)
    assert np.isnan(read("policy.json")[0]["several"]).sum() == 3
