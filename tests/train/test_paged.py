# SPDX-License-Identifier: Apache-2.0
"""Moments in host memory: the same numbers to the bit, and never more than a layer's on the device."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxpost import params, shard
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, normal
from jaxpost.shard.offload import HOST
from jaxpost.train import optimisers
from jaxpost.train import state as states
from jaxpost.train.optimisers import Optimiser

SPECS = {
    "q": ParamSpec((2, 8, 4, 2), "l : d : n h", normal(1.0)),
    "head": ParamSpec((8, 6), ": d : v", normal(1.0)),
    "norm": ParamSpec((2, 8), "l : : d", normal(1.0)),
}
MESH = shard.make_mesh(shard.MeshShape(2, 2, 2))
KINDS = {
    "adamw": Optimiser("adamw", lr=0.1, weight_decay=0.1, clip=0.5, warmup=2),
    "lion": Optimiser("lion", lr=0.1, weight_decay=0.1, clip=0.0),
    "sgd": Optimiser("sgd", lr=0.1, momentum=0.9),
}


def begun(config: Optimiser):
    """The optimiser, where its state rests, and the state of a fresh start there."""
    optimiser = optimisers.make(config, 10, SPECS)
    start = functools.partial(states.start, optimiser=optimiser)
    weights = params.init(SPECS, jax.random.key(0))
    places = states.shardings(jax.eval_shape(start, weights), shard.shardings(SPECS, MESH), MESH, config.paged)
    return optimiser, places, jax.jit(start, out_shardings=places)(weights)


def stepped(optimiser, state: states.State, steps: int) -> states.State:
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: states.State) -> states.State:
        gradients = jax.tree.map(lambda x: jnp.sin(7 * x) + state.step, state.trainable)
        updates, after = optimiser.update(gradients, state.opt_state, state.trainable)
        return states.State(state.step + 1, jax.tree.map(jnp.add, state.trainable, updates), after)

    for _ in range(steps):
        state = step(state)
    return state


@pytest.mark.parametrize("name", KINDS)
def test_every_operation_gives_the_same_bits(name):
    """One by one: fused into others, XLA may round the same operation otherwise in the last place."""
    ends = []
    weights = params.init(SPECS, jax.random.key(0))
    with jax.disable_jit():
        for paged in (False, True):
            optimiser = optimisers.make(replace(KINDS[name], paged=paged), 10, SPECS)
            state = states.start(weights, optimiser)
            for i in range(2):
                gradients = jax.tree.map(lambda x, i=i: jnp.sin(7 * x) + i, state.trainable)
                updates, after = optimiser.update(gradients, state.opt_state, state.trainable)
                state = states.State(state.step + 1, jax.tree.map(jnp.add, state.trainable, updates), after)
            ends.append(jax.tree.map(np.asarray, state))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert all(np.any(ends[1].trainable[path] != np.asarray(w)) for path, w in weights.items())


@pytest.mark.parametrize("name", KINDS)
def test_moments_rest_in_host_memory_and_the_rest_where_it_did(name):
    ends = []
    for paged in (False, True):
        optimiser, places, state = begun(replace(KINDS[name], paged=paged))
        assert jax.tree.structure(state) == jax.tree.structure(places)
        state = stepped(optimiser, state, 3)
        for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True):
            assert leaf.sharding.memory_kind == place.memory_kind
        kinds = [leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        assert len(kinds) == (6 if name == "adamw" else 3) and set(kinds) == {HOST if paged else "device"}
        ends.append(state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *ends)
    assert int(ends[1].step) == 3


def test_layers_are_fetched_one_at_a_time():
    optimiser, _, state = begun(Optimiser(paged=True))
    text = str(jax.make_jaxpr(optimiser.update)(state.trainable, state.opt_state, state.trainable))
    moved = [line for line in text.splitlines() if "device_put" in line and ":f32" in line]
    sizes = {line.split(":f32")[1].split(" ")[0] for line in moved}
    assert any("[8,4,2]" in size for size in sizes) and not any("[2," in size for size in sizes)


def test_a_saved_state_is_restored_into_host_memory(tmp_path):
    optimiser, places, state = begun(Optimiser(paged=True))
    state = stepped(optimiser, state, 1)
    kept = jax.tree.map(np.asarray, state)
    saver = ocp.StandardCheckpointer()
    saver.save(tmp_path / "state", state)
    saver.wait_until_finished()
    target = jax.tree.map(lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p), state, places)
    again = saver.restore(tmp_path / "state", target)
    jax.tree.map(np.testing.assert_array_equal, again, kept)
    assert again.opt_state[1][0].mu["q"].sharding.memory_kind == HOST
    jax.tree.map(np.testing.assert_array_equal, stepped(optimiser, again, 1), stepped(optimiser, state, 1))


def test_what_has_no_moments_is_refused():
    with pytest.raises(Fault, match="optim.paged: adafactor keeps hardly any moments"):
        optimisers.make(Optimiser("adafactor", paged=True), 10, SPECS)
