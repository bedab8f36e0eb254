# SPDX-License-Identifier: Apache-2.0
"""Magnitude and direction apart (DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353)."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.bind import Delta
from jaxpost.delta.contract import Add, Bound, Einsum, Op, Ragged, Take, Through, Weight, contract, dense
from jaxpost.delta.inits import one_by_one
from jaxpost.delta.lora import Lora
from jaxpost.delta.low_rank import LowRank
from jaxpost.delta.method import Given
from jaxpost.delta.scale import Scale, ones
from jaxpost.delta.stack import Stack
from jaxpost.params import ParamSpec


@struct.dataclass
class Magnitude:
    """`m * w / |w|`, where |w| is the norm of all that leads to an output, and passes no gradient (section 4.3 of the
    paper). m is shaped like the weight but of size one along its in axes; `inner` and `outer` count the axes.

    What is contracted is the weight times `m / |w|`, each part of it by itself: the factors of a low-rank update in
    their small way, and the base, for many tokens, formed once (for few, the result is scaled: whichever is less to
    write). The gradient of m comes from the result, not from a product of its own; so that the result need not be made
    again for it, it is kept under the name `scaled`. Norm and forming cost as much as reading the weight a few times.
    """

    m: Any
    inner: int = struct.field(pytree_node=False, default=1)
    outer: int = struct.field(pytree_node=False, default=1)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        assert not isinstance(op, Add | Through), "a magnitude is one of a matrix"
        factor = self.m / self.norm(w)
        if isinstance(op, Take | Ragged) or not op.forward:
            return Scale(factor).contract(op, x, w)
        y = contract(op, x, _scaled(w, jax.lax.stop_gradient(factor), self.inner))
        return _credited(op, checkpoint_name(y, "scaled"), factor)

    def dense(self, w: Weight, dtype: Any) -> Array:
        return (dense(w, jnp.float32) * (self.m / self.norm(w))).astype(dtype)

    def norm(self, w: Weight) -> Array:
        """|w|, shaped like m. Outputs that nothing leads to count as of norm one, and stay zero."""
        axes = tuple(range(-self.inner - self.outer, -self.outer))
        w = jax.lax.stop_gradient(w)
        norm = jnp.sqrt(jnp.sum(jnp.square(dense(w, jnp.float32)), axes, keepdims=True))
        return jnp.where(norm == 0, 1.0, norm)

    def lead(self) -> tuple[int, ...] | None:
        return None

    def letters(self, inner: str, outer: str) -> "Magnitude":
        return self.replace(m=f"{inner} {outer}".strip())  # pyright: ignore[reportAttributeAccessIssue]


@struct.dataclass
class _Formed:
    """`w * s` of a weight that is not trained, in the activation's type, where that is smaller than what it leads to;
    otherwise the result is scaled."""

    s: Any

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        assert isinstance(op, Einsum)
        whole = jax.eval_shape(lambda: dense(w, x.dtype))
        if jax.eval_shape(op, x, whole).size < whole.size:
            return op.scale_out(contract(op, x, w), self.s)

        def formed(x: Array, w: Weight, s: Array) -> Array:
            return op(x, (dense(w, jnp.float32) * s).astype(x.dtype))

        return jax.checkpoint(formed, prevent_cse=False)(x, w, self.s)

    def dense(self, w: Weight, dtype: Any) -> Array:
        return (dense(w, jnp.float32) * self.s).astype(dtype)


def _scaled(w: Weight, s: Array, inner: int) -> Weight:
    """The weight with each of its parts times s."""
    if not isinstance(w, Bound) or not isinstance(w.edit, LowRank):
        return Bound(w, _Formed(s))
    axes = tuple(range(w.edit.scale.ndim, w.edit.scale.ndim + inner))
    b = w.edit.b * jnp.expand_dims(jnp.squeeze(s, axes), w.edit.scale.ndim)
    edit = w.edit.replace(b=b)  # pyright: ignore[reportAttributeAccessIssue]
    return Bound(_scaled(w.w, s, inner), edit, w.key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _credited(op: Einsum, y: Array, factor: Array) -> Array:
    """y, a result in which the factor is contained already: its gradient is that of `y / factor * factor`."""
    return y


def _credit(op: Einsum, y: Array, factor: Array) -> tuple[Array, tuple[Array, Array]]:
    return y, (y, factor)


def _due(op: Einsum, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    y, factor = kept
    _, vjp = jax.vjp(lambda f: op.scale_out(y.astype(jnp.float32), f), jnp.ones_like(factor))
    (sums,) = vjp(g.astype(jnp.float32))
    return g, sums / jnp.where(factor == 0, 1.0, factor)


_credited.defvjp(_credit, _due)


@dataclass(frozen=True)
class Dora(Lora):
    """DoRA on the targets: LoRA, whose fields all apply, for the direction of each output's weights, and a length
    trained apart from it, which starts as what it is in the base. Dropout acts on what the factors see alone."""

    def __call__(self, specs: Tree) -> dict[str, Any]:
        flat = trees.flatten(specs)
        return {path: _lengthened(edit, flat[path]) for path, edit in super().__call__(specs).items()}

    def start(self, delta: Delta, given: Given) -> Delta:
        flat = trees.flatten(given.base)
        return {
            path: _measured(edit, flat[path]) if isinstance(edit, Stack) else edit
            for path, edit in super().start(delta, given).items()
        }


def _lengthened(edit: Any, spec: ParamSpec) -> Any:
    if not isinstance(edit, LowRank | Stack):
        return edit
    inner, outer = len(spec.sizes(1)), len(spec.sizes(2))
    below = edit.edits if isinstance(edit, Stack) else (edit,)
    return Stack((*below, Magnitude(ones(spec, "out"), inner, outer)))


def _measured(edit: Stack, w: Weight) -> Stack:
    *below, magnitude = edit.edits

    def norm(of: tuple[Any, Weight]) -> Array:
        return magnitude.norm(Stack(of[0]).over(of[1]))

    m = one_by_one(norm, magnitude.m.ndim - magnitude.inner - magnitude.outer)((tuple(below), w))
    return edit.replace(edits=(*below, magnitude.replace(m=m)))  # pyright: ignore[reportAttributeAccessIssue]
