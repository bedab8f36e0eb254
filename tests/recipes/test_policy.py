# SPDX-License-Identifier: Apache-2.0
"""What a policy says of its own answers is what whole logits say, and its critic's values stand where they should."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, losses, params
from jaxpost.delta import ActorCritic, AdaLora, Both, Head, Lora
from jaxpost.faults import Fault
from jaxpost.models import decoder, heads
from jaxpost.recipes.rollouts import policy
from tests.recipes.rolled import CONFIG, METHODS, ROLLOUT, base, drawn, full, scattered

BATCH = {name: jnp.asarray(x) for name, x in drawn().items()}
RNG = np.random.default_rng(0)
WORTH = jnp.asarray(RNG.normal(size=(3, *BATCH["mask"].shape)), jnp.float32) * BATCH["mask"][None]
HOT = 0.7


def weighed(log_probs, entropy, values):
    found = (log_probs, entropy) if values is None else (log_probs, entropy, values)
    return sum(jnp.sum(x * worth) for x, worth in zip(found, WORTH, strict=False))


@functools.cache
def said(name, entropy=True):
    """What is said of the drawn rollout, and the gradient of a weighted sum of all of it."""

    def value(trainable):
        tree, critic = policy.roles(filled(trainable, name), base())
        found = policy.answers(CONFIG, tree, BATCH, HOT, entropy=entropy, critic=critic, chunk=7)
        return weighed(*found), found

    return jax.device_get(jax.jit(jax.value_and_grad(value, has_aux=True))(scattered(name)))


def filled(trainable, name):
    """With the fixed half of the delta."""
    _, fixed = delta.partition(params.init(METHODS[name](decoder.specs(CONFIG)), jax.random.key(1)))
    return delta.combine(trainable, fixed)


@functools.cache
def direct(name):
    """The same from whole logits."""

    def value(trainable):
        tree, critic = policy.roles(filled(trainable, name), base())
        logs, hidden = full(tree, BATCH, HOT)
        chosen = jnp.take_along_axis(logs, BATCH["answers"][..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
        if critic is not None and critic is not tree:
            hidden = full(critic, BATCH, HOT)[1]
        found = chosen, entropy, None if critic is None else heads.score(CONFIG, critic, hidden)
        return weighed(*found), found

    return jax.device_get(jax.jit(jax.value_and_grad(value, has_aux=True))(scattered(name)))


def seen(x):
    return np.where(np.asarray(BATCH["mask"]) > 0, x, 0.0)


@pytest.mark.parametrize("name", ["shared", "apart"])
def test_values_and_gradients_are_those_of_whole_logits(name):
    (_, found), gradients = said(name)
    (_, wanted), wanted_gradients = direct(name)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(seen(one), seen(other), atol=2e-5)
        assert np.abs(seen(other)).max() > 0.01
    for (path, one), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(wanted_gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-3, err_msg=jax.tree_util.keystr(path))
        assert np.linalg.norm(other) > 1e-3, jax.tree_util.keystr(path)


def test_the_entropy_has_a_gradient_only_if_it_is_asked_for():
    (_, found), quiet = said("shared", entropy=False)
    (_, wanted), loud = said("shared")
    np.testing.assert_allclose(found.entropy, wanted.entropy, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(quiet), jax.tree.leaves(loud), strict=True)) > 1e-2


def test_a_policy_without_a_critic_has_no_values():
    batch = BATCH

    def traced(trainable):
        tree, critic = policy.roles(filled(trainable, "plain"), base())
        assert critic is None
        return policy.answers(CONFIG, tree, batch, HOT, critic=critic)

    assert jax.eval_shape(traced, scattered("plain")).values is None


def test_what_is_reported_leaves_out_what_has_no_reward():
    batch = {**BATCH, "log_probs": BATCH["sampler_log_probs"] + 0.25 * BATCH["mask"]}
    batch["reference_log_probs"] = batch["log_probs"] - 0.5
    found = {name: float(value) for name, value in policy.reported(batch, ("score",)).items()}
    known = np.asarray(BATCH["reward"])[~np.isnan(BATCH["reward"])]
    np.testing.assert_allclose(found["reward"], known.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["reward/score"], known.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["reward_deviation"], known.std(), rtol=1e-5)
    np.testing.assert_allclose(found["sampler_gap"], 0.25, rtol=1e-5)
    lengths = np.asarray(BATCH["mask"]).sum(axis=1)
    assert (lengths == 0).sum() == 1, "the answer without a score"
    np.testing.assert_allclose(found["kl"], 0.5 * lengths[lengths > 0].mean(), rtol=1e-5)
    assert found["ended"] == 0.75 and found["predictions"] == lengths.sum()
    np.testing.assert_allclose(found["length"], 28 / 8, rtol=1e-6, err_msg="of all answers, taught or not")
    assert found["tokens"] == 28 + 4 * 5 + 4 * 2


def test_denominators_are_those_of_the_whole_minibatch():
    found = policy.denominators(BATCH)
    assert found["whole_tokens"] == BATCH["mask"].sum() and found["whole_sequences"] == 7
    part = {name: x[:4] for name, x in BATCH.items()}
    assert policy.whole({**part, **found}) == losses.Counts(found["whole_tokens"], found["whole_sequences"])


def test_a_critic_is_a_head_of_one_class():
    for method in (METHODS["shared"], METHODS["apart"], Both(Head(1), Lora()), ActorCritic()):
        policy.check_critic(delta.partition(method(decoder.specs(CONFIG)))[0])
    for method in (Lora(), AdaLora(), Both(Lora(), Head(2))):
        with pytest.raises(Fault, match="PPO needs a critic; choose Both"):
            policy.check_critic(delta.partition(method(decoder.specs(CONFIG)))[0])


def test_an_abstract_rollout_is_what_is_sampled():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    given = policy.abstract_rollout(ROLLOUT, mesh, 1, ("log_probs",))
    batch = {**drawn(), "log_probs": drawn()["sampler_log_probs"]}
    assert {name: (x.shape, x.dtype) for name, x in given.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }
