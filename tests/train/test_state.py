# SPDX-License-Identifier: Apache-2.0
"""Where a state rests on a mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxpost import delta, trees
from jaxpost.train import state as states
from jaxpost.train.optimisers import Optimiser
from tests.train.tiny import CUBE, assembled, mesh_of, placed_base

KINDS = [delta.Full(), delta.Lora(rank=2)]
MOMENTS = {"adamw": 2, "lion": 1, "sgd": 1, "adafactor": 0}


def layout(leaf):
    return leaf.shape, leaf.sharding.spec


@pytest.mark.parametrize("kind", KINDS, ids=["full", "lora"])
@pytest.mark.parametrize("name", MOMENTS)
def test_moments_lie_like_their_leaves_and_all_else_everywhere(name, kind):
    momentum = 0.9 if name == "sgd" else 0.0
    assembly = assembled(CUBE, kind, Optimiser(name, momentum=momentum))
    trainable, opt_state = assembly.state.trainable, assembly.state.opt_state
    form, wanted = jax.tree.structure(trainable), jax.tree.map(layout, trainable)
    found = []

    def look(node):
        if jax.tree.structure(node) == form:
            found.append(jax.tree.map(layout, node))
            return None
        return node.sharding.spec

    rest = jax.tree.map(look, opt_state, is_leaf=lambda node: jax.tree.structure(node) == form)
    assert found == [wanted] * MOMENTS[name]
    assert set(jax.tree.leaves(rest, is_leaf=lambda node: isinstance(node, P))) == {P()}
    assert assembly.state.step.sharding.spec == P()
    cut = {path for path, leaf in trees.flatten(wanted).items() if any(any(s[1]) for s in _layouts(leaf))}
    assert cut == set(trainable), "every leaf's edit is cut somewhere, so that the comparison means something"


def _layouts(edit):
    return jax.tree.leaves(edit, is_leaf=lambda node: isinstance(node, tuple) and len(node) == 2)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_state_is_made_where_it_rests(name):
    """Shardings of the arrays themselves, and how much of them one device holds."""
    assembly = assembled(CUBE, delta.Full(), Optimiser(name, momentum=0.9 if name == "sgd" else 0.0))
    with jax.set_mesh(assembly.mesh):
        state, _ = assembly.make(jax.random.key(0), placed_base(assembly.mesh))
    for made, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(assembly.state), strict=True):
        assert made.shape == wanted.shape and made.dtype == wanted.dtype
        assert made.sharding.is_equivalent_to(wanted.sharding, made.ndim)
    q = state.trainable["layers/attn/q"].dw
    assert math.prod(q.addressable_shards[0].data.shape) * 4 == math.prod(q.shape)


def test_what_only_looks_like_a_moment_stays_everywhere():
    """A tree of the same form whose leaves have other shapes (row sums, say)."""
    mesh = mesh_of(CUBE)
    trainable = {"w": jnp.ones((4, 8)), "b": jnp.ones(8)}
    sums = optax.GradientTransformation(
        lambda p: {"same": p, "rows": jax.tree.map(lambda leaf: leaf.sum(-1), p), "count": jnp.zeros(())},
        lambda updates, state, params=None: (updates, state),
    )
    state = jax.eval_shape(lambda: states.start(trainable, sums, extra={"kl": jnp.ones(3)}))
    places = {"w": P("fsdp", "tensor"), "b": P("tensor")}
    places = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), places)
    found = states.shardings(state, places, mesh)
    assert found.trainable == places and found.opt_state["same"] == places
    others = jax.tree.leaves([found.opt_state["rows"], found.opt_state["count"], found.extra, found.step])
    assert len(others) == 5 and all(place.spec == P() for place in others)


def test_start_counts_from_zero_and_keeps_what_it_is_given():
    optimiser = optax.adam(1e-3)
    trainable = {"w": jnp.arange(3.0)}
    state = states.start(trainable, optimiser, extra={"kl": jnp.float32(0.1)})
    assert state.step.dtype == jnp.int32 and int(state.step) == 0
    assert state.trainable is trainable and float(state.extra["kl"]) == np.float32(0.1)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(optimiser.init(trainable))
