# SPDX-License-Identifier: Apache-2.0
"""An optimiser whose moments rest in host memory (the paged optimisers of Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314, without page faults: it is known which numbers are needed next)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpost.arrays import Array, Tree
from jaxpost.params import ParamSpec
from jaxpost.shard.offload import fetched, returned

Make = Callable[[Tree], optax.GradientTransformation]


def paged(make: Make, specs: Tree, clip: float = 0.0) -> optax.GradientTransformation:
    """`make(specs)`, an optimiser that treats every number by itself (Adam, Lion, momentum), with its moments in host
    memory: they are fetched, updated and returned leaf by leaf, and stacked leaves layer by layer, so that a device
    never holds more than one layer's of one leaf. State and numbers are those of `make(specs)`, operation by operation
    to the bit.

    Gradients whose global norm exceeds `clip`, if there is one, are scaled down to it layer by layer too: clipped as a
    whole, all of them would be written once more. `make` is also called with a list of one spec. A moment is known by
    being in a tree of the trainable one's form; other state (counts) stays on the device.
    """
    flat = jax.tree.leaves(specs)

    def init(params: Tree) -> Any:
        form = jax.tree.structure(params)
        return _on_moments(form, returned, make(specs).init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        form = jax.tree.structure(updates)
        parameters = form.flatten_up_to(params)
        norm = optax.tree.norm(updates) if clip else None

        def clipped(g: Array) -> Array:
            return g if norm is None else jnp.where(norm < clip, g, g / norm.astype(g.dtype) * clip)

        done, states = [], []
        for i, gradient in enumerate(jax.tree.leaves(updates)):
            mine = _on_moments(form, lambda tree, i=i: [form.flatten_up_to(tree)[i]], state)
            new, mine = _leaf(make([flat[i]]), flat[i], clipped, gradient, mine, parameters[i])
            done.append(new)
            states.append(mine)
        return form.unflatten(done), _joined(form, state, states)

    return optax.GradientTransformation(init, update)


def _leaf(
    own: optax.GradientTransformation,
    spec: ParamSpec,
    clipped: Callable[[Array], Array],
    g: Array,
    state: Any,
    p: Array,
) -> tuple[Array, Any]:
    """One leaf's update and state, `[moment]` where the whole has a tree of moments."""
    one = jax.tree.structure([0])

    def step(g: Array, state: Any, p: Array) -> tuple[Array, Any]:
        new: Any
        new, after = own.update([clipped(g)], _on_moments(one, fetched, state), [p])
        return new[0], _on_moments(one, returned, after)

    if not spec.groups[0]:
        return step(g, state, p)
    leaves, form = jax.tree.flatten(state, is_leaf=lambda node: jax.tree.structure(node) == one)
    stacked = [isinstance(node, list) for node in leaves]

    def layer(whole: Array, row: tuple[Array, list[Any], Array]) -> tuple[Array, Any]:
        i, mine, p = row
        g = jax.lax.dynamic_index_in_dim(whole, i, keepdims=False)
        known = [node if own is None else own for node, own in zip(leaves, mine, strict=True)]
        new, after = step(g, form.unflatten(known), p)
        return jax.lax.dynamic_update_index_in_dim(whole, new.astype(whole.dtype), i, 0), after

    mine = [node if moment else None for node, moment in zip(leaves, stacked, strict=True)]
    # The updates take the gradients' place: together they would weigh as much as the moments that are saved.
    new, after = jax.lax.scan(layer, g, (jnp.arange(len(g)), mine, p))
    # What counts steps has counted the same for every layer.
    parts = zip(form.flatten_up_to(after), stacked, strict=True)
    return new, form.unflatten([part if moment else part[0] for part, moment in parts])


def _on_moments(form: Any, change: Callable[[Any], Any], state: Any) -> Any:
    """The state with every tree of that form changed."""

    def is_moments(node: Any) -> bool:
        return jax.tree.structure(node) == form

    return jax.tree.map(lambda node: change(node) if is_moments(node) else node, state, is_leaf=is_moments)


def _joined(form: Any, state: Any, states: Sequence[Any]) -> Any:
    """The state of the whole from those of its leaves."""

    def is_moments(node: Any) -> bool:
        return jax.tree.structure(node) == form

    nodes, outline = jax.tree.flatten(state, is_leaf=is_moments)
    each = [outline.flatten_up_to(one) for one in states]
    joined = [
        form.unflatten([parts[k][0] for parts in each]) if is_moments(node) else each[0][k]
        for k, node in enumerate(nodes)
    ]
    return outline.unflatten(joined)
