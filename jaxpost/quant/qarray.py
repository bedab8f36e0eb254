# SPDX-License-Identifier: Apache-2.0
"""A weight stored as codes and scales, and the protocol of a format."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Tree
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, constant

TARGETS = ("layers/*",)
"""What is quantised unless told otherwise: the blocks. Embedding and head stay, being looked up or read by softmax."""

ENDS = ("embed", "head")
"""What stays."""


class Format(Protocol):
    """How numbers become codes. Implementations are frozen dataclasses: they ride in the tree as static data.

    Every array that `encode` returns carries the weight's lead axes first, and no shape with them is kept anywhere, so
    that the layer scan can strip the lead axis. Axes are told by their letters, counted from the last one.
    """

    def of(self, spec: ParamSpec) -> "Format":
        """The format for weights with the axes of that spec: with what it must know of them besides the codes."""
        ...

    def encode(self, w: Array, inner: int, outer: int) -> tuple[Array, Mapping[str, Array]]:
        """Codes and scales of a weight whose last `inner + outer` axes are its in and out axes."""
        ...

    def decode(self, codes: Array, scales: Mapping[str, Array], dtype: Any) -> Array: ...

    def letters(self, inner: str, outer: str) -> tuple[str, Mapping[str, str]]:
        """The letters of the axes of codes and scales behind the lead axes, for sharding."""
        ...


@runtime_checkable
class InPieces(Protocol):
    """A format of which every piece of a weight can be decoded by itself, be it cut along in or out axes; at least once
    it has been prepared for that."""

    def apart(self, codes: Array, scales: Mapping[str, Array], ways: int) -> tuple[Array, Mapping[str, Array], Format]:
        """The same weight, so that it can be cut up to `ways` times along an axis which that divides."""
        ...


@runtime_checkable
class ByRow(Protocol):
    """A format of which rows of a table `[v, d]` can be decoded without the rest."""

    def rows(self, codes: Array, scales: Mapping[str, Array], ids: Array, dtype: Any) -> Array: ...


@struct.dataclass
class QArray:
    """A quantised weight. Invariant: `format.decode(codes, scales)` approximates the weight it was made from, with
    as many axes as `codes` has, of which the last are `inner` in axes and `outer` out axes. A leaf of parameters like
    any other: scanned, sharded, saved; never trained."""

    codes: Any
    scales: Any
    format: Format = struct.field(pytree_node=False)
    inner: int = struct.field(pytree_node=False, default=1)
    outer: int = struct.field(pytree_node=False, default=1)

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    def letters(self, inner: str, outer: str) -> "QArray":
        codes, scales = self.format.letters(inner, outer)
        return self.replace(codes=codes, scales=scales)  # pyright: ignore[reportAttributeAccessIssue]


def quantise(w: Array, spec: ParamSpec, format: Format) -> QArray:
    """The weight in the format, scaled along the axes that its spec names."""
    _, inner, outer = spec.groups
    format = format.of(spec)
    codes, scales = format.encode(w, len(inner), len(outer))
    return QArray(codes, scales, format, len(inner), len(outer))


def quantise_like(w: Array, q: QArray) -> QArray:
    """Another weight of q's shape in q's format: after an edit has been merged into the weight that q stands for."""
    codes, scales = q.format.encode(w, q.inner, q.outer)
    return q.replace(codes=codes, scales=scales)  # pyright: ignore[reportAttributeAccessIssue]


def dequantise(q: QArray, dtype: Any = jnp.float32) -> Array:
    return q.format.decode(q.codes, q.scales, dtype)


def quantise_tree(params: Tree, specs: Tree, format: Format, targets: Iterable[str] = TARGETS) -> Tree:
    """The tree with every weight that maps in axes to out axes, among the targets, in the format. Norms, biases and
    empty slots stay as they are."""
    flat, flat_specs = trees.flatten(params), trees.flatten(specs)
    chosen = _matrices(flat_specs, targets)
    done = {path: quantise(leaf, flat_specs[path], format) if path in chosen else leaf for path, leaf in flat.items()}
    return trees.unflatten(done)


def quantise_specs(specs: Tree, format: Format, targets: Iterable[str] = TARGETS) -> Tree:
    """The specs of what `quantise_tree` makes: shapes, shardings and counts follow from them as from any."""

    def quantised(spec: ParamSpec) -> QArray:
        lead, inner, outer = (" ".join(group) for group in spec.groups)
        whole = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
        made = jax.eval_shape(lambda w: quantise(w, spec, format), whole)

        def part(x: Any, axes: str) -> ParamSpec:
            return replace(
                spec, shape=x.shape, dims=f"{lead} : : {axes}", init=constant(0), dtype=x.dtype, derived=True
            )

        return jax.tree.map(part, made, made.letters(inner, outer))

    flat = trees.flatten(specs)
    chosen = _matrices(flat, targets)
    return trees.unflatten({path: quantised(spec) if path in chosen else spec for path, spec in flat.items()})


def _matrices(specs: Mapping[str, ParamSpec], targets: Iterable[str]) -> set[str]:
    """The targets that are weights, not norms, biases or empty slots."""
    chosen = {path: specs[path] for path in trees.select(specs, targets, "quantised weights")}
    return {path for path, spec in chosen.items() if spec and not spec.optional and all(spec.groups[1:])}


def is_quantised(leaf: Any) -> bool:
    return isinstance(leaf, QArray)


def apart(tree: Tree, ways: int) -> Tree:
    """The tree with every quantised leaf such that pieces of it can be decoded by themselves, for code that devices run
    each on their own piece. Raises `Fault` for a format that has no such form."""

    def leaf(x: Any) -> Any:
        if not is_quantised(x):
            return x
        if ways > 1 and not isinstance(x.format, InPieces):
            raise Fault(
                f"weights as {type(x.format).__name__} cannot be cut over the devices of a mesh here; "
                "choose a mesh with tensor=1"
            )
        if ways == 1:
            return x
        codes, scales, format = x.format.apart(x.codes, x.scales, ways)
        return x.replace(codes=codes, scales=scales, format=format)

    return jax.tree.map(leaf, tree, is_leaf=is_quantised)


def dequantise_tree(params: Tree, dtype: Any = jnp.float32) -> Tree:
    """The tree with plain arrays where it had quantised ones."""
    return jax.tree.map(
        lambda leaf: dequantise(leaf, dtype) if is_quantised(leaf) else leaf, params, is_leaf=is_quantised
    )
