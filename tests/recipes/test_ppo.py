# SPDX-License-Identifier: Apache-2.0
"""PPO: what a token is rewarded with, what its first update is, and what has no part in it."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta
from jaxpost.models import heads
from jaxpost.recipes import ppo
from jaxpost.recipes.rollouts import policy
from jaxpost.train.optimisers import Optimiser
from tests.recipes.rolled import (
    CONFIG,
    METHODS,
    REWARDS,
    ROLLOUT,
    Learner,
    base,
    close,
    drawn,
    full,
    scattered,
    settings,
    wider,
)
from tests.train.tiny import CUBE

PLAIN = ppo.Config("", delta=METHODS["shared"], epochs=1, minibatches=1)
SHARED = settings(PLAIN, objective=ppo.Objective(critic_steps=1, entropy=0.01))
LAST = (drawn()["mask"].sum(axis=1) - 1).astype(int)
TAUGHT = drawn()["mask"] > 0


def told(noise=0.3, seed=0):
    """The rollout with what was observed of it made up."""
    batch, rng = drawn(), np.random.default_rng(seed)
    log_probs = batch["sampler_log_probs"]
    away = noise * rng.normal(size=log_probs.shape)
    values = rng.normal(size=log_probs.shape)
    found = {"log_probs": log_probs, "reference_log_probs": log_probs - away, "values": values}
    return batch | {name: x.astype(np.float32) for name, x in found.items()}


def prepared(batch, coefficient=0.0, kind="k1", **objective):
    config = replace(PLAIN, rollout=ROLLOUT, objective=ppo.Objective(**objective), penalty=ppo.Penalty(kind=kind))
    extra = {"coefficient": np.float32(coefficient), "step": np.int32(0)}
    found = jax.jit(functools.partial(ppo.prepare, config))(batch, extra)
    return jax.device_get(found)


# --- before learning


def test_the_reward_stands_on_the_answers_last_token():
    """With nothing discounted to, a token's return is its own reward."""
    found, metrics = prepared(told(), gamma=0.0)
    wanted = np.zeros_like(found["returns"])
    wanted[np.arange(8), LAST] = np.nan_to_num(REWARDS)
    wanted[6] = 0.0
    np.testing.assert_allclose(found["returns"] * TAUGHT, wanted, atol=1e-6)
    assert metrics["kl_coefficient"] == 0.0 and np.isfinite(found["advantages"]).all()


def test_what_moves_away_from_the_reference_costs():
    """Each token by its own log-ratio: one that the policy has made likelier is punished, another rewarded."""
    batch = told()
    found, _ = prepared(batch, 0.5, gamma=0.0)
    kl = (batch["log_probs"] - batch["reference_log_probs"]) * TAUGHT
    wanted = -0.5 * kl
    wanted[np.arange(8), LAST] += np.where(np.isnan(REWARDS), 0.0, REWARDS)
    np.testing.assert_allclose(found["returns"], np.where(TAUGHT, wanted, 0.0), atol=1e-5)
    other, _ = prepared(batch, 0.5, "k3", gamma=0.0)
    wanted = -0.5 * (np.exp(-kl) + kl - 1)
    wanted[np.arange(8), LAST] += np.where(np.isnan(REWARDS), 0.0, REWARDS)
    np.testing.assert_allclose(other["returns"], np.where(TAUGHT, wanted, 0.0), atol=1e-5)


def estimated(batch, coefficient, gamma, lam):
    """Advantages and returns, one token after the other."""
    advantages, returns = np.zeros(TAUGHT.shape), np.zeros(TAUGHT.shape)
    kl = batch["log_probs"] - batch["reference_log_probs"]
    for i in range(8):
        following, later = 0.0, 0.0
        for t in reversed(range(int(TAUGHT[i].sum()))):
            reward = -coefficient * kl[i, t] + (REWARDS[i] if t == LAST[i] else 0.0)
            later = reward + gamma * following - batch["values"][i, t] + gamma * lam * later
            following = batch["values"][i, t]
            advantages[i, t], returns[i, t] = later, later + following
    return advantages, returns


def whitened(x):
    inside = x[TAUGHT]
    return np.where(TAUGHT, (x - inside.mean()) / np.sqrt(inside.var(ddof=1) + 1e-8), 0.0)


def test_advantages_are_whitened_over_the_tokens_and_returns_are_not():
    batch = told()
    found, metrics = prepared(batch, 0.1, gamma=0.9, lam=0.8)
    advantages, returns = estimated(batch, 0.1, 0.9, 0.8)
    np.testing.assert_allclose(found["advantages"], whitened(advantages), atol=1e-5)
    np.testing.assert_allclose(found["returns"], returns, atol=1e-5)
    np.testing.assert_allclose(metrics["return"], returns[TAUGHT].mean(), rtol=1e-5)
    errors = (returns - batch["values"])[TAUGHT]
    np.testing.assert_allclose(metrics["explained_variance"], 1 - errors.var() / returns[TAUGHT].var(), rtol=1e-4)


def test_rewards_may_be_scaled_to_a_deviation_of_one():
    found, _ = prepared(told(), 0.5, gamma=0.0, whiten_rewards=True)
    plain, _ = prepared(told(), 0.5, gamma=0.0)
    one, other = found["returns"][TAUGHT], plain["returns"][TAUGHT]
    np.testing.assert_allclose(one.std(ddof=1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(one.mean(), other.mean(), atol=1e-5)
    np.testing.assert_allclose(np.corrcoef(one, other)[0, 1], 1.0, rtol=1e-5)


def test_the_coefficient_follows_its_target():
    config = replace(PLAIN, rollout=ROLLOUT, penalty=ppo.Penalty(target=6.0, horizon=100.0))

    def after(kl, config=config):
        found = ppo.finish(config, {"coefficient": jnp.float32(0.05), "step": jnp.int32(3)}, {"kl": jnp.float32(kl)})
        assert found["step"] == 4
        return float(found["coefficient"])

    assert after(12.0) > after(6.5) > 0.05 > after(5.5) > after(-3.0) > 0.0
    np.testing.assert_allclose([after(6.0), after(float("nan"))], 0.05, rtol=1e-6)
    assert after(12.0, replace(config, penalty=ppo.Penalty())) == np.float32(0.05), "without a target it stays"


# --- the step


@functools.cache
def learner():
    return Learner(ppo, SHARED, "shared")


@functools.cache
def observed():
    return learner().observed(drawn())


@functools.cache
def first():
    """The first update that the policy has a part in, and the one before, of the critic alone."""
    ((moved, metrics),) = learner().steps(observed(), step=np.int32(1))
    ((alone, _),) = learner().steps(observed(), step=np.int32(0))
    return moved, metrics, alone


def test_the_first_update_is_the_policy_gradient():
    """Its ratios are 1, and nothing is clipped: the gradient is that of minus whitened advantages times log-probs."""
    batch = observed()
    advantages, returns = estimated(batch, 0.05, 1.0, 0.95)
    advantages, given = whitened(advantages), {name: jnp.asarray(x) for name, x in batch.items()}

    def value(trainable):
        tree, critic = policy.roles(delta.combine(trainable, learner().frozen["fixed"]), base())
        logs, hidden = full(tree, given, ROLLOUT.temperature)
        chosen = jnp.take_along_axis(logs, given["answers"][..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
        error = 0.5 * (heads.score(CONFIG, critic, hidden) - returns) ** 2
        each = -advantages * chosen + 0.1 * error - 0.01 * entropy
        return jnp.sum(jnp.where(TAUGHT, each, 0.0)) / TAUGHT.sum()

    wanted = jax.device_get(jax.jit(jax.grad(value))(scattered("shared")))
    moved, metrics, _ = first()
    close(moved, jax.tree.map(lambda x: -x, wanted))
    assert metrics["clipped"] == 0.0 and abs(metrics["update_kl"]) < 1e-6
    assert all(np.linalg.norm(leaf) > 1e-3 for leaf in jax.tree.leaves(wanted))


def test_a_critic_that_shares_the_delta_learns_alone_by_its_head():
    moved, _, alone = first()
    for path, edit in alone.items():
        head = path.startswith("heads/")
        assert all(np.any(leaf) == head for leaf in jax.tree.leaves(edit)), path
    np.testing.assert_allclose(alone["heads/classes"].value, moved["heads/classes"].value, atol=1e-6)


def test_one_of_its_own_leaves_the_policy_as_it_was_to_the_bit():
    """By Adam, whose step does not shrink with the gradient; afterwards both learn."""
    config = replace(settings(PLAIN), delta=METHODS["apart"], optim=Optimiser(lr=0.01, schedule="constant"))
    apart = Learner(ppo, replace(config, objective=ppo.Objective(critic_steps=1)), "apart")
    (one, metrics), (two, _) = apart.steps(told(), told())
    for path in one:
        own = path.startswith(delta.CRITIC)
        assert all(np.any(leaf) == own for leaf in jax.tree.leaves(one[path])), path
        assert all(np.any(leaf) for leaf in jax.tree.leaves(two[path])), path
    assert int(apart.ended.extra["step"]) == 2 and metrics["value_loss"] > 0


def test_neither_microbatches_nor_room_nor_devices_change_anything():
    """All at once, so one comparison stands for each."""
    roomy = replace(ROLLOUT, prompt_tokens=7, answer_tokens=9)
    config = replace(SHARED, rollout=roomy, train=replace(SHARED.train, microbatches=2))
    ((moved, metrics),) = Learner(ppo, config, "shared", CUBE).steps(wider(observed(), roomy), step=np.int32(1))
    wanted, wanted_metrics, _ = first()
    close(moved, wanted)
    assert metrics.keys() == wanted_metrics.keys()
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_padding_mistaken_for_an_answer_would_be_noticed():
    batch = observed()
    mistaken = {**batch, "mask": np.ones_like(batch["mask"])}
    ((moved, _),) = learner().steps(mistaken, step=np.int32(1))
    with pytest.raises(AssertionError):
        close(moved, first()[0], 0.05)
