# SPDX-License-Identifier: Apache-2.0
"""What one step takes, gives, uses up and leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpost import delta
from jaxpost.recipes import run, sft
from jaxpost.train import state as states
from jaxpost.train.step import make_step
from tests.train.tiny import CONFIG, assembled, config, copied, identical, started, uneven

KINDS = {"full": delta.Full(), "lora": delta.Lora(rank=2, dropout=0.5)}


@functools.cache
def program(name):
    """The recipe's own program, on one device."""
    assembly = assembled(None, KINDS[name])
    return assembly, sft.programs(config(delta=KINDS[name]), assembly)["step"].call


def taken(name, key=0, steps=1):
    assembly, step = program(name)
    with jax.set_mesh(assembly.mesh):
        state, frozen = started(assembly)
        batch = run.place(uneven(), assembly.mesh)
        given, before = state, copied((state, frozen))
        history = []
        for _ in range(steps):
            state, metrics = step(state, frozen, batch, jax.random.key(key))
            history.append(copied(metrics))
    return given, before, frozen, state, history


@pytest.mark.parametrize("name", KINDS)
def test_the_state_is_used_up_and_the_frozen_half_is_not(name):
    given, (state_before, frozen_before), frozen, after, _ = taken(name)
    assert int(after.step) == 1 and int(state_before.step) == 0
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.trainable))
    assert identical(frozen, frozen_before), "still there, and to the bit what it was"
    assert jax.tree.structure(after) == jax.tree.structure(state_before)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), after.trainable, state_before.trainable)
    if name == "full":
        assert all(jax.tree.leaves(moved))
    else:  # b starts at zero, so at first a has no gradient
        assert all(edit.b and not edit.a for edit in moved.values())


def test_a_frozen_base_serves_many_runs():
    """The same arrays, step after step and run after run."""
    assembly, step = program("lora")
    with jax.set_mesh(assembly.mesh):
        _, frozen = started(assembly)
        batch = run.place(uneven(), assembly.mesh)
        ends = []
        for _ in range(2):
            state, _ = started(assembly)
            for _ in range(3):
                state, _ = step(state, frozen, batch, jax.random.key(0))
            ends.append(copied(state))
    assert ends[0].step == 3 and identical(*ends)


def test_the_gradient_norm_is_that_of_the_gradient():
    assembly, _ = program("lora")
    _, _, frozen, after, (metrics,) = taken("lora")
    state, _ = started(assembly)
    loss = sft.make_loss(CONFIG, config(delta=KINDS["lora"]))
    batch = {key: jnp.asarray(value) for key, value in uneven().items()}
    whole = {**batch, **sft.denominators(batch)}
    key = jax.random.fold_in(jax.random.key(0), 0)
    gradient = jax.jit(jax.grad(lambda t: loss(t, frozen, None, whole, key)[0]))(state.trainable)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(flat), rtol=1e-5)
    # And the update is made of it: plain gradient descent at rate 1.
    expected = jax.tree.map(lambda p, g: p - g, state.trainable, gradient)
    for a, b in zip(jax.tree.leaves(after.trainable), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_dropout_follows_the_key_and_the_step():
    *_, state, one = taken("lora", key=1, steps=3)
    *_, state_again, again = taken("lora", key=1, steps=3)
    *_, other = taken("lora", key=2, steps=3)
    assert identical(one, again) and identical(copied(state), copied(state_again))
    assert one[0]["loss"] == other[0]["loss"], "factors that are zero have nothing to drop"
    assert one[1]["loss"] != other[1]["loss"] and one[0]["grad_norm"] != other[0]["grad_norm"]


def drawing(trainable, frozen, extra, batch, key):
    """A loss whose metrics are what its key draws, in the place of its rows."""
    where = jax.nn.one_hot(batch["row"], 8).sum(axis=0)
    return jnp.sum(trainable["w"]), {"draws": where * jax.random.uniform(key), "whole": batch["count"] * where}


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_every_step_and_microbatch_draws_anew(microbatches):
    optimiser = optax.sgd(1.0)
    step = jax.jit(make_step(drawing, optimiser, lambda batch: {"count": jnp.float32(len(batch["row"]))}, microbatches))
    batch = {"row": jnp.arange(8)}

    def draws(seed, steps=3):
        state, found = states.start({"w": jnp.zeros(2)}, optimiser), []
        for _ in range(steps):
            state, metrics = step(state, None, batch, jax.random.key(seed))
            found.append(np.asarray(metrics["draws"]))
            np.testing.assert_array_equal(metrics["whole"], 8.0)
        return np.stack(found)

    found = draws(0)
    assert len(np.unique(found)) == 3 * microbatches, "one draw a microbatch, and never the same"
    np.testing.assert_array_equal(found, draws(0))
    assert not np.intersect1d(found, draws(1)).size
    # Microbatch i holds each m-th row from i on.
    np.testing.assert_array_equal(found, np.tile(found[:, :microbatches], 8 // microbatches))


def test_a_resumed_state_goes_on_with_its_own_keys():
    """The key of a step depends on the state's step, not on how many steps this process has made."""
    optimiser = optax.sgd(1.0)
    step = jax.jit(make_step(drawing, optimiser, lambda batch: {"count": jnp.float32(8)}))
    batch, state = {"row": jnp.arange(8)}, states.start({"w": jnp.zeros(2)}, optimiser)
    for _ in range(3):
        state, metrics = step(state, None, batch, jax.random.key(0))
    later = states.start({"w": jnp.zeros(2)}, optimiser).replace(step=jnp.int32(2))
    _, resumed = step(later, None, batch, jax.random.key(0))
    np.testing.assert_array_equal(resumed["draws"], metrics["draws"])


def test_gradients_of_16_bits_are_added_in_32():
    """Four equal parts of 1/256 each and one of 1: added in bfloat16 they would be lost."""

    def loss(trainable, frozen, extra, batch, key):
        return jnp.sum(trainable["w"] * jnp.sum(batch["x"]).astype(jnp.bfloat16)), {}

    x = jnp.array([1.0] + [2.0**-9] * 7)
    step = make_step(loss, optax.sgd(1.0), lambda batch: {}, 8)
    state = states.start({"w": jnp.zeros(1, jnp.bfloat16)}, optax.sgd(1.0))
    _, metrics = jax.jit(step)(state, None, {"x": x}, jax.random.key(0))
    np.testing.assert_allclose(metrics["grad_norm"], 1.0 + 7 * 2.0**-9, rtol=1e-6)
