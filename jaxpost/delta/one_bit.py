# SPDX-License-Identifier: Apache-2.0
"""A fine-tuned model as one bit a weight beside its base (BitDelta, Liu et al. 2024, https://arxiv.org/abs/2402.10193)."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.contract import Add, Op, Take, Through, Weight, contract, dense
from jaxpost.delta.dense import Dense
from jaxpost.delta.difference import difference
from jaxpost.params import ParamSpec, constant
from jaxpost.quant import dequantise, quantise, quantise_specs
from jaxpost.quant.sign import Sign

TARGETS = ("layers/*",)
"""The matrices that are left one bit a weight: those of the blocks, as in the paper."""


@struct.dataclass
class OneBit:
    """`w + scale * sign`, sign being +1 or -1, kept as bits, and scale one number for each layer's matrix, `[lead]`.

    The activation meets the signs beside the base, and what comes out is scaled. They are unpacked on the way, and
    again on the way back: a matrix of them is never kept.
    """

    bits: Any
    scale: Any
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=("bits",))

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        assert not isinstance(op, Add | Through)  # a matrix meets neither
        y = contract(op, x, w)
        if isinstance(op, Take):
            signs = self.bits.format.rows(self.bits.codes, x, y.dtype)
        else:
            signs = contract(op, x, self.bits)
        return y + op.scale_out(signs, self._scales(op.forward)).astype(y.dtype)

    def _scales(self, forward: bool) -> Array:
        """The scale as a factor for each of the axes that an activation leaves by."""
        lead, inner, outer = self._sizes()
        kept = (*(1,) * len(inner), *outer) if forward else (*inner, *(1,) * len(outer))
        return jnp.broadcast_to(_against(self.scale, len(kept)), (*lead, *kept))

    def dense(self, w: Weight, dtype: Any) -> Array:
        _, inner, outer = self._sizes()
        scale = _against(self.scale.astype(jnp.float32), len(inner) + len(outer))
        return (dense(w, jnp.float32) + scale * dequantise(self.bits, jnp.float32)).astype(dtype)

    def _sizes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        lead = self.scale.ndim
        return self.scale.shape, self.bits.format.inner, self.bits.codes.shape[lead + 1 :]

    def lead(self) -> tuple[int, ...] | None:
        return None

    def letters(self, inner: str, outer: str) -> "OneBit":
        bits = self.bits.letters(inner, outer)
        return self.replace(bits=bits, scale="")  # pyright: ignore[reportAttributeAccessIssue]


def _against(scale: Array, axes: int) -> Array:
    return scale.reshape(*scale.shape, *(1,) * axes)


def one_bit(fine: Tree, base: Tree, specs: Tree, targets: Iterable[str] = TARGETS) -> dict[str, Any]:
    """The delta that turns `base` into nearly `fine`: of the matrices among the targets the signs of their differences
    (of 0: -1), scaled by the mean of their sizes, which is the scale that leaves the smallest squared error.

    What is no matrix, or no target (embeddings, norms, biases), is as different as `difference` says, in the type
    that its spec says, and not trained. The trees may be bound or quantised; one weight's difference is in memory at
    a time.
    """
    flat, flat_fine, flat_base = trees.flatten(specs), trees.flatten(fine), trees.flatten(base)
    chosen = _matrices(flat, targets)
    rest = {path: leaf for path, leaf in flat_fine.items() if path not in chosen}
    delta: dict[str, Any] = {}
    for path, edit in difference(rest, {path: leaf for path, leaf in flat_base.items() if path not in chosen}).items():
        delta[path] = edit
        if isinstance(edit, Dense):
            delta[path] = Dense(edit.dw.astype(flat[path].dtype), fixed=("dw",))
    for path in chosen:
        edit = _compressed(flat_fine[path], flat_base[path], flat[path])
        if np.any(np.asarray(edit.scale)):  # a weight that was not tuned costs nothing
            delta[path] = edit
    return {path: delta[path] for path in flat if path in delta}


def one_bit_specs(specs: Tree, targets: Iterable[str] = TARGETS) -> dict[str, Any]:
    """The specs of what `one_bit` makes where every weight differs: how large it is follows, without a number of it."""
    flat = {path: spec for path, spec in trees.flatten(specs).items() if not spec.optional}
    chosen = _matrices(flat, targets)
    kept = {path: Dense(replace(spec, init=constant(0)), fixed=("dw",)) for path, spec in flat.items()}
    return kept | {path: _edit(flat[path]) for path in chosen}


def _edit(spec: ParamSpec) -> OneBit:
    lead = replace(spec, shape=spec.sizes(0), dims=f"{' '.join(spec.groups[0])} : :", derived=True)
    bits = quantise_specs({"w": spec}, Sign(), ("w",))["w"]
    return OneBit(bits, replace(lead, init=constant(0.0), dtype=jnp.float32))


def _matrices(specs: Mapping[str, ParamSpec], targets: Iterable[str]) -> tuple[str, ...]:
    """The targets that map in axes to out axes."""
    chosen = trees.select(specs, targets, "one-bit targets")
    return tuple(path for path in chosen if not specs[path].optional and all(specs[path].groups[1:]))


@functools.partial(jax.jit, static_argnums=2)
def _compressed(fine: Weight, base: Weight, spec: ParamSpec) -> OneBit:
    change = dense(fine, jnp.float32) - dense(base, jnp.float32)
    behind = tuple(range(len(spec.groups[0]), change.ndim))
    return OneBit(quantise(change, spec, Sign()), jnp.mean(jnp.abs(change), axis=behind))
