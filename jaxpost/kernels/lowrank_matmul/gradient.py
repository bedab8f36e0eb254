# SPDX-License-Identifier: Apache-2.0
"""The gradient of a fused low-rank product, which is one itself."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpost.arrays import Array
from jaxpost.kernels.lowrank_matmul.weight import matrix
from jaxpost.quant import QArray

KEPT = "low"
"""The name of what is kept for the backward pass: `x a`, a row of r numbers for each of x. Under a policy that does not
save it, the whole product is made again for its sake."""


class Product(Protocol):
    """`x w + s b` `[t o]` and `s = x a^T` `[t r]`, from x `[t i]`, w `[i o]` (`across`: `[o i]`, transposed in use), a
    `[r i]` and b `[r o]`, all of one type; sums in float32."""

    def __call__(self, x: Array, w: Array, a: Array, b: Array, across: bool) -> tuple[Array, Array]: ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused(product: Product, x: Array, w: Array | QArray, a: Array, b: Array) -> Array:
    """`x w + (x a) b` by a product that gives both, forwards and backwards.

    With `s = x a` and dy the cotangent: `ds = dy b^T` and `dx = dy w^T + ds a^T` are such a product again, over w as it
    lies; `da = x^T ds` and `db = s^T dy` read x and dy once more. What nobody differentiates costs nothing, and of w,
    if quantised, only codes and scales are kept.
    """
    return product(x, matrix(w, *_kind(x)), a.astype(x.dtype).T, b.astype(x.dtype), False)[0]


def _forward(product: Product, x: Any, w: Any, a: Any, b: Any) -> tuple[Array, Any]:
    # `symbolic_zeros` brings each leaf with the knowledge of whether anyone differentiates it.
    def wanted(leaf: Any) -> bool:
        return leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.floating)

    trained = jax.tree.map(lambda leaf: leaf.value if wanted(leaf) else None, w)
    rest = jax.tree.map(lambda leaf: None if wanted(leaf) else leaf.value, w)
    dtype = x.value.dtype
    whole = matrix(_joined(trained, rest), *_kind(x.value))
    y, s = product(x.value, whole, a.value.astype(dtype).T, b.value.astype(dtype), False)
    marks = tuple(() if leaf.perturbed else None for leaf in (x, a, b))
    x = x.value if a.perturbed or jax.tree.leaves(trained) else None
    return y, (marks, x, trained, rest, a.value, b.value, checkpoint_name(s, KEPT))


def _backward(product: Product, kept: Any, dy: Any) -> tuple[Any, Any, Any, Any]:
    marks, x, trained, rest, a, b, s = kept
    if isinstance(dy, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    wants_x, wants_a, wants_b = (mark is not None for mark in marks)
    low_a, low_b = a.astype(dy.dtype), b.astype(dy.dtype)

    def whole(trained: Any) -> Array:
        return matrix(_joined(trained, rest), a.shape[0], dy.dtype)

    dx = da = db = dw = None
    if wants_x:
        dx, ds = product(dy, whole(trained), low_b, low_a.T, True)
    else:
        ds = dy @ low_b.T
    if wants_a:
        da = jnp.matmul(x.T, ds, preferred_element_type=jnp.float32).astype(a.dtype)
    if wants_b:
        db = jnp.matmul(s.T, dy, preferred_element_type=jnp.float32).astype(b.dtype)
    if jax.tree.leaves(trained):
        dw = jax.vjp(whole, trained)[1](x.T @ dy)[0]
    return dx, dw, da, db


def _joined(trained: Any, rest: Any) -> Any:
    return jax.tree.map(lambda a, b: b if a is None else a, trained, rest, is_leaf=lambda leaf: leaf is None)


def _kind(x: Array) -> tuple[int, Any]:
    return x.shape[-1], x.dtype


fused.defvjp(_forward, _backward, symbolic_zeros=True)


def by_example(one: Callable[..., tuple[Array, Array]], across: bool) -> Callable[..., tuple[Array, Array]]:
    """A kernel's product which under `jax.vmap` (each example of a batch through factors of its own) is made of plain
    ones: the large one is of all examples at once then."""
    mapped = jax.custom_batching.custom_vmap(one)

    @mapped.def_vmap
    def _(size: int, mapped: Any, *arrays: Array) -> Any:
        def own(x: Array, w: Array, a: Array, b: Array) -> tuple[Array, Array]:
            return plain(x, w, a, b, across)

        axes = tuple(0 if each else None for each in mapped)
        return jax.vmap(own, axes, axis_size=size)(*arrays), (True, True)

    return mapped


def plain(x: Array, w: Array, a: Array, b: Array, across: bool) -> tuple[Array, Array]:
    """A `Product` as three products."""
    s = x @ a.T
    return x @ (w.T if across else w) + s @ b, s
