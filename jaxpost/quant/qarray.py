# SPDX-License-Identifier: Apache-2.0
"""A weight stored as codes and scales, and the protocol of a format."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Tree
from jaxpost.params import ParamSpec, constant

TARGETS = ("layers/*",)
"""What is quantised unless told otherwise: the blocks. Embedding and head stay, being looked up or read by softmax."""


class Format(Protocol):
    """How numbers become codes. Implementations are frozen dataclasses: they ride in the tree as static data.

    Every array that `encode` returns carries the weight's lead axes first, and no shape is kept anywhere, so that the
    layer scan can strip the lead axis. Axes are told by their letters, counted from the last one.
    """

    def encode(self, w: Array, inner: int, outer: int) -> tuple[Array, Mapping[str, Array]]:
        """Codes and scales of a weight whose last `inner + outer` axes are its in and out axes."""
        ...

    def decode(self, codes: Array, scales: Mapping[str, Array], dtype: Any) -> Array: ...

    def letters(self, inner: str, outer: str) -> tuple[str, Mapping[str, str]]:
        """The letters of the axes of codes and scales behind the lead axes, for sharding."""
        ...


@struct.dataclass
class QArray:
    """A quantised weight. Invariant: `format.decode(codes, scales)` approximates the weight it was made from, with
    as many axes as `codes` has. A leaf of parameters like any other: scanned, sharded, saved; never trained."""

    codes: Any
    scales: Any
    format: Format = struct.field(pytree_node=False)

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    def letters(self, inner: str, outer: str) -> "QArray":
        codes, scales = self.format.letters(inner, outer)
        return self.replace(codes=codes, scales=scales)  # pyright: ignore[reportAttributeAccessIssue]


def quantise(w: Array, spec: ParamSpec, format: Format) -> QArray:
    """The weight in the format, scaled along the axes that its spec names."""
    _, inner, outer = spec.groups
    codes, scales = format.encode(w, len(inner), len(outer))
    return QArray(codes, scales, format)


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
            return ParamSpec(x.shape, f"{lead} : : {axes}", constant(0), x.dtype, derived=True)

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


def dequantise_tree(params: Tree, dtype: Any = jnp.float32) -> Tree:
    """The tree with plain arrays where it had quantised ones."""
    return jax.tree.map(
        lambda leaf: dequantise(leaf, dtype) if is_quantised(leaf) else leaf, params, is_leaf=is_quantised
    )
