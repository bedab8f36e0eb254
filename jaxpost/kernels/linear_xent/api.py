# SPDX-License-Identifier: Apache-2.0
"""A token loss on logits that exist for one chunk of tokens at a time, its gradient formed in the forward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int, Tree
from jaxpost.kernels.linear_xent.chosen import likeliest
from jaxpost.kernels.linear_xent.chunks import cut, joined

Contract = Callable[[Array, Tree], Array]
"""From hidden states `[b, c, d]` and the head's weights (any tree: arrays, quantised, under an edit) to logits
`[b, c, v]`. Must not close over anything that is differentiated."""

TokenLoss = Callable[[Array, Array], Array]
"""From logits `[b, c, v]` in float32 and targets `[b, c]` to losses `[b, c]`."""


def linear_xent(
    contract: Contract,
    token_loss: TokenLoss,
    weights: Tree,
    hidden: Float[Array, "b s d"],
    targets: Int[Array, "b s"],
    scale: Float[Array, "b s"],
    chunk: int = 2048,
) -> tuple[Float[Array, ""], Float[Array, "b s"], Float[Array, "b s"]]:
    """`sum(scale * token_loss(contract(hidden, weights), targets))`, and per token the loss and whether the target
    was the likeliest (a share of it where words are alike; both without gradient; none flows into `scale` either).

    The sum is linear in its cotangent, so the gradients of hidden and weights are formed chunk by chunk while the
    logits are at hand, and only scaled in the backward pass: two passes over a chunk's logits where
    rematerialisation makes three, and `[b, s, v]` never exists. Weights that nobody differentiates (a frozen head)
    cost no gradient. A chunk is about `chunk` tokens a device, cut along the sequence so that rows stay where they
    are.
    """
    pieces = (cut(x, chunk, targets.shape) for x in (hidden, targets, jax.lax.stop_gradient(scale)))
    sums: Any = _total(contract, token_loss, weights, *pieces)
    losses, hits = (joined(x, targets.shape[1]) for x in sums[1:])
    return sums[0], losses, hits


def _chunk_loss(
    contract: Contract, token_loss: TokenLoss, weights: Tree, hidden: Array, targets: Array, scale: Array
) -> tuple[Array, tuple[Array, Array]]:
    logits = contract(hidden, weights).astype(jnp.float32)
    losses = token_loss(logits, targets)
    hits = likeliest(jax.lax.stop_gradient(logits), targets)
    # As in `masked_mean`, tokens of weight zero do not matter, whatever their loss: an ignored target may be no index.
    return jnp.sum(jnp.where(scale == 0, 0.0, losses * scale)), (losses, hits)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _total(contract: Contract, token_loss: TokenLoss, weights: Tree, hidden: Array, targets: Array, scale: Array):
    def step(total: Array, rows: tuple[Array, Array, Array]):
        part, out = _chunk_loss(contract, token_loss, weights, *rows)
        return total + part, out

    total, (losses, hits) = jax.lax.scan(step, jnp.zeros(()), (hidden, targets, scale))
    return total, losses, hits


def _forward(contract: Contract, token_loss: TokenLoss, weights: Any, hidden: Any, targets: Any, scale: Any):
    # `symbolic_zeros` brings each leaf with the knowledge of whether anyone differentiates it.
    leaves, form = jax.tree.flatten(weights)
    wanted = [leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.floating) for leaf in leaves]
    trained = [leaf.value for leaf, want in zip(leaves, wanted, strict=True) if want]

    def chunk_loss(trained: list[Array], *rows: Array) -> tuple[Array, tuple[Array, Array]]:
        given = iter(trained)
        whole = [next(given) if want else leaf.value for want, leaf in zip(wanted, leaves, strict=True)]
        return _chunk_loss(contract, token_loss, jax.tree.unflatten(form, whole), *rows)

    def step(carry: tuple[Array, list[Array]], rows: tuple[Array, ...]):
        total, sums = carry
        (part, out), (d_trained, d_rows) = jax.value_and_grad(chunk_loss, (0, 1), has_aux=True)(trained, *rows)
        sums = [a + d.astype(jnp.float32) for a, d in zip(sums, d_trained, strict=True)]
        return (total + part, sums), (*out, d_rows)

    start = jnp.zeros(()), [jnp.zeros(leaf.shape, jnp.float32) for leaf in trained]
    (total, sums), (losses, hits, d_hidden) = jax.lax.scan(step, start, (hidden.value, targets.value, scale.value))
    gradients = iter([d.astype(leaf.dtype) for d, leaf in zip(sums, trained, strict=True)])
    d_weights = jax.tree.unflatten(form, [next(gradients) if want else None for want in wanted])
    return (total, losses, hits), (d_weights, d_hidden)


def _backward(contract: Contract, token_loss: TokenLoss, kept: Any, cotangents: Any):
    del contract, token_loss
    d_weights, d_hidden = kept
    d_total = cotangents[0]
    if isinstance(d_total, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    scaled = jax.tree.map(lambda d: (d * d_total).astype(d.dtype), (d_weights, d_hidden))
    return *scaled, None, None


_total.defvjp(_forward, _backward, symbolic_zeros=True)
