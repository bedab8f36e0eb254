# SPDX-License-Identifier: Apache-2.0
"""Everything that a step changes, as one value."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.arrays import Tree
from jaxpost.shard.offload import on_host


@struct.dataclass
class State:
    """One in, one out, donated. `trainable` is the trainable half of the delta; `extra` is what a recipe updates
    after a step (a moving reference, a KL coefficient). What a run never changes, the base and the fixed half of the
    delta, is passed beside it and never donated: other roles read the same arrays."""

    step: Any
    trainable: Any
    opt_state: Any
    extra: Any = None


def start(trainable: Tree, optimiser: optax.GradientTransformation, extra: Tree = None) -> State:
    return State(jnp.zeros((), jnp.int32), trainable, optimiser.init(trainable), extra)


def shardings(state: State, trainable: Tree, mesh: Mesh, paged: bool = False) -> State:
    """Where a state rests, from where its trainable leaves do: each optimiser moment lies like the leaf it belongs
    to, anything else (counts, factored moments of another shape) on every device. Moments are known by coming as
    whole trees of the trainable one's form. `paged` ones rest in host memory. What is in `extra` lies everywhere,
    unless it has that form too.

    `state` is abstract (from `jax.eval_shape`); `trainable` holds shardings.
    """
    everywhere = NamedSharding(mesh, P())
    form = jax.tree.structure(state.trainable)

    def moment(leaf: Any, shape: Any, sharding: Any) -> Any:
        if leaf.shape != shape.shape:
            return everywhere
        return on_host(sharding) if paged else sharding

    def moments(node: Any) -> bool:
        return jax.tree.structure(node) == form

    def place(node: Any) -> Any:
        return jax.tree.map(moment, node, state.trainable, trainable) if moments(node) else everywhere

    opt_state = jax.tree.map(place, state.opt_state, is_leaf=moments)
    extra = jax.tree.map(lambda node: trainable if moments(node) else everywhere, state.extra, is_leaf=moments)
    return State(everywhere, trainable, opt_state, extra)
