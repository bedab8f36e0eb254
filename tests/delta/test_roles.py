# SPDX-License-Identifier: Apache-2.0
"""A policy and its critic over one base: two deltas that are told apart and never meet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params
from jaxpost.delta import ActorCritic, Both, Given, Head, Lora, Prompt
from jaxpost.models import decoder
from jaxpost.recipes.rollouts import policy
from tests.train.tiny import CONFIG, base

SPECS = decoder.specs(CONFIG)
APART = ActorCritic(Lora(rank=2, targets=("q", "v")), Both(Lora(rank=3, targets=("q",)), Head(1)))
SHARED = Both(Lora(rank=2, targets=("q",)), Head(1))
METHODS = {
    "apart": APART,
    "shared": SHARED,
    "plain": SHARED.first,
    "alike": ActorCritic(Lora(rank=2, targets=("q",)), Both(Lora(rank=2, targets=("q",)), Head(1))),
    "dropping": ActorCritic(
        Lora(rank=2, targets=("q",), dropout=0.5), Both(Lora(rank=2, targets=("q",), dropout=0.5), Head(1))
    ),
}


@functools.cache
def made(name):
    """As a run starts it."""
    method, key = METHODS[name], jax.random.key(1)
    return jax.jit(lambda w: method.start(params.init(method(SPECS), key), Given(w, key, specs=SPECS)))(base())


def test_each_role_has_its_own_entries_under_their_own_paths():
    whole = made("apart")
    actor, critic = delta.role(whole), delta.role(whole, delta.CRITIC)
    assert set(actor) == {"layers/attn/q", "layers/attn/v"}
    assert set(critic) == {"layers/attn/q", "heads/classes", "heads/classes_shift"}
    assert len(whole) == len(actor) + len(critic), "and nothing is left over"
    assert actor["layers/attn/q"].a.shape[-1] != critic["layers/attn/q"].a.shape[-1], "ranks of 2 and of 3"
    assert set(actor) == set(APART.actor(SPECS)) and set(critic) == set(APART.critic(SPECS))


def test_a_delta_without_roles_is_the_policys():
    whole = made("shared")
    assert delta.role(whole) == whole and delta.role(whole, delta.CRITIC) == {}


def test_partition_and_combine_keep_the_roles():
    whole = made("apart")
    trainable, fixed = delta.partition(whole)
    again = delta.combine(trainable, fixed)
    assert jax.tree.structure(again) == jax.tree.structure(whole)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_the_actors_factors_are_drawn_apart_from_the_critics():
    one, other = (delta.role(made("alike"), prefix)["layers/attn/q"].a for prefix in ("", delta.CRITIC))
    assert one.shape == other.shape and not np.array_equal(one, other)


def test_what_is_bound_is_the_policy_and_its_critic():
    whole = made("apart")
    actor, critic = policy.roles(whole, base())
    assert (
        actor["heads"]["classes"] is None and critic is not None and critic["heads"]["classes"].shape == (CONFIG.d, 1)
    )
    assert actor["embed"] is critic["embed"], "one base"
    assert actor["layers"]["attn"]["v"].edit is whole["layers/attn/v"]
    assert not isinstance(critic["layers"]["attn"]["v"], delta.Bound)


def test_one_tree_serves_both_where_they_share_a_delta():
    tree, critic = policy.roles(made("shared"), base())
    assert critic is tree
    tree, critic = policy.roles(made("plain"), base())
    assert critic is None, "and there is none without a head"


def test_dropout_of_the_roles_differs():
    actor, critic = policy.roles(made("dropping"), base(), jax.random.key(0))
    keys = [jax.random.key_data(tree["layers"]["attn"]["q"].key) for tree in (actor, critic)]
    assert not np.array_equal(*keys)
    quiet, _ = policy.roles(made("dropping"), base())
    assert quiet["layers"]["attn"]["q"].key is None


@pytest.mark.parametrize("method, virtual", [(APART, 0), (ActorCritic(Prompt(3), APART.critic), 3)])
def test_places_are_reserved_for_the_policy(method, virtual):
    assert method.virtual == virtual and method.place == "before"


def test_gradients_of_one_role_leave_the_other_alone():
    trainable, fixed = delta.partition(made("apart"))

    def through(prefix, path):
        def value(trainable):
            edit = delta.role(delta.combine(trainable, fixed), prefix)[path]
            return jnp.sum(jnp.square(edit.a)) + jnp.sum(edit.b)

        return jax.grad(value)(trainable)

    for prefix in ("", delta.CRITIC):
        found = through(prefix, "layers/attn/q")
        moved = {path for path, edit in found.items() if any(np.any(leaf) for leaf in jax.tree.leaves(edit))}
        assert moved == {f"{prefix}layers/attn/q"}
