# SPDX-License-Identifier: Apache-2.0
"""Numbers of every token from logits that exist for one chunk of tokens at a time: log-probabilities, entropies."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int, Tree
from jaxpost.kernels.linear_xent.api import Contract
from jaxpost.kernels.linear_xent.chunks import cut, joined

Values = Callable[[Array, Array], tuple[Array, ...]]
"""From logits `[b, c, v]` in float32 and targets `[b, c]` to some numbers of every token, each `[b, c]`."""


def linear_values(
    contract: Contract,
    values: Values,
    weights: Tree,
    hidden: Float[Array, "b s d"],
    targets: Int[Array, "b s"],
    chunk: int = 2048,
) -> tuple[Float[Array, "b s"], ...]:
    """`values(contract(hidden, weights), targets)`, each with its gradient, while `[b, s, v]` never exists.

    What is made of a token's logits depends on that token alone. So where the head is frozen its gradient by the hidden
    state is formed in the forward pass, for a cotangent of one, and the backward pass only scales it: logits are made
    once, and `[b, s, d]` is kept for each of the values. A head that is trained needs the cotangents before it can
    sum; then the backward pass makes the logits of each chunk again.
    """
    pieces = cut(hidden, chunk, targets.shape), cut(targets, chunk, targets.shape)
    found: Any = _values(contract, values, weights, *pieces)
    return tuple(joined(x, targets.shape[1]) for x in found)


def _of_chunk(contract: Contract, values: Values, weights: Tree, hidden: Array, targets: Array) -> tuple[Array, ...]:
    return values(contract(hidden, weights).astype(jnp.float32), targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _values(contract: Contract, values: Values, weights: Tree, hidden: Array, targets: Array) -> tuple[Array, ...]:
    def step(_: None, rows: tuple[Array, Array]):
        return None, _of_chunk(contract, values, weights, *rows)

    return jax.lax.scan(step, None, (hidden, targets))[1]


def _forward(contract: Contract, values: Values, weights: Any, hidden: Any, targets: Any):
    # `symbolic_zeros` brings each leaf with the knowledge of whether anyone differentiates it.
    def wanted(leaf: Any) -> bool:
        return leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.floating)

    trained = jax.tree.map(lambda leaf: leaf.value if wanted(leaf) else None, weights)
    rest = jax.tree.map(lambda leaf: None if wanted(leaf) else leaf.value, weights)
    if jax.tree.leaves(trained):
        found = _values(contract, values, _whole(trained, rest), hidden.value, targets.value)
        return found, (None, (trained, rest, hidden.value, targets.value))

    def step(_: None, rows: tuple[Array, Array]):
        hidden, targets = rows
        found, pull = jax.vjp(lambda hidden: _of_chunk(contract, values, rest, hidden, targets), hidden)
        zeros = [jnp.zeros_like(x) for x in found]
        ones = (tuple(jnp.ones_like(x) if i == k else zeros[i] for i, x in enumerate(found)) for k in range(len(found)))
        return None, (found, tuple(pull(one)[0] for one in ones))

    found, units = jax.lax.scan(step, None, (hidden.value, targets.value))[1]
    return found, (units, None)


def _backward(contract: Contract, values: Values, kept: Any, cotangents: Any):
    units, again = kept
    told = [not isinstance(d, jax.custom_derivatives.SymbolicZero) for d in cotangents]
    if not any(told):
        return None, None, None
    if again is None:
        pairs = [(unit, d) for unit, d, one in zip(units, cotangents, told, strict=True) if one]
        return None, sum(unit * d[..., None].astype(unit.dtype) for unit, d in pairs), None
    given = tuple(d if one else jnp.zeros(d.shape, d.dtype) for d, one in zip(cotangents, told, strict=True))
    return *_summed(contract, values, again, given), None


def _summed(contract: Contract, values: Values, again: Any, given: tuple[Array, ...]) -> tuple[Tree, Array]:
    """The gradients of the head's weights, summed over chunks in float32, and of the hidden states."""
    trained, rest, hidden, targets = again

    def step(sums: Tree, rows: tuple[Array, Array, tuple[Array, ...]]):
        hidden, targets, d = rows

        def of_chunk(trained: Tree, hidden: Array) -> tuple[Array, ...]:
            return _of_chunk(contract, values, _whole(trained, rest), hidden, targets)

        _, pull = jax.vjp(of_chunk, trained, hidden)
        d_trained, d_hidden = pull(d)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), sums, d_trained), d_hidden

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained)
    sums, d_hidden = jax.lax.scan(step, start, (hidden, targets, given))
    return jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), sums, trained), d_hidden


def _whole(trained: Tree, rest: Tree) -> Tree:
    return jax.tree.map(lambda a, b: b if a is None else a, trained, rest, is_leaf=lambda leaf: leaf is None)


_values.defvjp(_forward, _backward, symbolic_zeros=True)
