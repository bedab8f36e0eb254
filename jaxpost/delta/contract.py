# SPDX-License-Identifier: Apache-2.0
"""Where a weight meets an activation: the only place, whatever kind of weight it is.

A weight is an array, a `QArray`, or a `Bound`: any of the three, or an empty slot, with an edit on it. Models call
`einsum`, `take`, `ragged`, `plus` and `through`, and never ask which.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.faults import Fault
from jaxpost.kernels import quant_matmul as few
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.kernels.ragged_matmul import Groups, ragged_matmul
from jaxpost.params import ParamSpec
from jaxpost.quant import ByRow, QArray, dequantise
from jaxpost.shard import RULES, Rules, constrain, on_each, on_one_device, ways

Weight = Any  # Array | QArray | Bound


@dataclass(frozen=True)
class Einsum:
    """A contraction of an activation with a weight, `bsd,dnh->bsnh`.

    The weight's letters name its in axes before its out axes. Letters in both operands and not in the result are
    contracted: the in axes, or in a transposed use (a tied head, `bsd,vd->bsv`) the out axes. Letters in all three
    run along (experts).
    """

    spec: str

    def __call__(self, x: Array, w: Array) -> Array:
        return jnp.einsum(self.spec, x, w.astype(x.dtype))

    @property
    def batch(self) -> tuple[int, int]:
        """Which axis of the activation, and of the result, counts the examples: b, or the first."""
        x, _, result = self.parts
        return max(0, x.find("b")), max(0, result.find("b"))

    @property
    def parts(self) -> tuple[str, str, str]:
        operands, result = self.spec.replace(" ", "").split("->")
        x, w = operands.split(",")
        return x, w, result

    @property
    def forward(self) -> bool:
        """Whether the activation meets the weight's in axes; in a transposed use it meets the out axes."""
        x, w, result = self.parts
        across = [c for c in w if c not in x or c not in result]
        return not across or across[0] in x

    @property
    def merged(self) -> int:
        """How many of the activation's last axes are contracted, if that is all there is to it: a product of matrices
        `[..., in] [in, out]` once axes are merged. Otherwise 0."""
        x, w, result = self.parts
        inner = "".join(c for c in w if c in x)
        outer = w[len(inner) :]
        alone = inner and w.startswith(inner) and not set(inner) & set(result) and "." not in x
        return len(inner) if alone and x.endswith(inner) and result == x.removesuffix(inner) + outer else 0

    def in_few_bits(self, x: Array, w: QArray, low: tuple[Array, Array] | None = None) -> Array | None:
        """A product of few tokens with a quantised weight (given the factors `[in..., r]` and `[r, out...]` of a
        low-rank edit, with the edited weight), by a kernel that reads it as it is stored. `None` for what is no such
        product, or where no kernel serves it."""
        if not (
            self.merged == w.inner == w.ndim - w.outer
            and isinstance(w.format, few.FORMATS)
            and jnp.issubdtype(x.dtype, jnp.floating)
            and 0 < math.prod(x.shape[: -w.inner]) <= few.MOST_TOKENS * ways("b")
        ):
            return None

        def local(x: Array, w: QArray, *low: Array) -> Array:
            tokens, outs = x.shape[: -w.inner], w.codes.shape[w.inner :]
            flat = (low[0].reshape(-1, low[0].shape[-1]), low[1].reshape(low[1].shape[0], -1)) if low else None
            y = few.quant_fused(x.reshape(math.prod(tokens), -1), few.as_matrix(w), flat)
            return y.reshape(*tokens, *outs)

        try:
            return self.on_pieces(local, x, w, *low or ())
        except Unsupported:
            return None

    def on_pieces(self, local: Callable[..., Array], x: Array, w: "Array | QArray", *low: Array) -> Array:
        """A product of matrices (`merged`), if need be under the factors of a low-rank edit, by every device on its own
        pieces of them, results being added up where in axes are cut. Raises `Unsupported` where that would be more work
        than XLA's, or is not known."""
        if on_one_device():
            return local(x, w, *low)
        rows = self.parts[0].find("b")
        if rows >= 0 and x.shape[rows] % ways("b"):
            raise Unsupported("rows that the mesh does not divide would be computed everywhere")
        if isinstance(w, QArray) and any(ways(letter) > 1 for letter in self.parts[1]):
            raise Unsupported("pieces of quantised weights are not looked into")
        letters, _, result = (" ".join(part) for part in self.parts)
        inner, outer = " ".join(self.parts[0][-self.merged :]), " ".join(self.parts[1][self.merged :])
        of_w = jax.tree.map(lambda x: "_ " * x.ndim, w) if isinstance(w, QArray) else f"{inner} {outer}"
        names = (letters, of_w, f"{inner} r", f"r {outer}")[: 2 + len(low)]

        def each(x: Array, w: Any, *low: Array) -> Array:
            if on_one_device():
                return local(x, w, *low)
            # On all of them it is only asked for the result's shape.
            return self(x, dequantise(w, x.dtype) if isinstance(w, QArray) else w)

        size = x.shape[-self.merged]
        return on_each(each, result, (inner[0], size), names, result, checked=False)(x, w, *low)

    def split(self) -> tuple["Einsum", "Einsum"]:
        """The same contraction through a factor pair: `x@a` down to a rank axis, then `@b` up from it; transposed,
        `x@b^T` and then `@a^T`."""
        x, w, result = self.parts
        rank = next(letter for letter in "rzyxwvu" if letter not in self.spec)
        along = "".join(c for c in w if c in x and c in result)
        inner = "".join(c for c in w if c in x and c not in result)
        outer = "".join(c for c in w if c not in x)
        low = "".join(c for c in x if c not in inner) + rank
        first, second = (f"{inner}{rank}", f"{rank}{outer}") if self.forward else (f"{rank}{inner}", f"{outer}{rank}")
        return Einsum(f"{x},{along}{first}->{low}"), Einsum(f"{low},{along}{second}->{result}")

    def scale_in(self, x: Array, s: Array, rest: Callable[[Array], Array]) -> Array:
        """`rest` of the activation times a factor for each of the weight's contracted axes; s has size one along the
        others."""
        letters, w, _ = self.parts
        return rest(x * _laid_along(s, w, letters, x))

    def scale_out(self, y: Array, s: Array) -> Array:
        """The result times a factor for each of the weight's axes in it; s has size one along the others."""
        _, w, result = self.parts
        return y * _laid_along(s, w, result, y)


def _laid_along(s: Array, letters: str, target: str, x: Array) -> Array:
    """Factors with axes `letters` as an array that broadcasts against x with axes `target`; axes that x lacks have size
    one. (As an einsum this would be a product of matrices of one row, and its gradient a slow one.)"""
    target = target.replace(".", "")
    s = jnp.squeeze(s, tuple(i for i, c in enumerate(letters) if c not in target)).astype(x.dtype)
    left = [c for c in letters if c in target]
    s = jnp.transpose(s, sorted(range(len(left)), key=lambda i: target.index(left[i])))
    sizes = dict(zip(sorted(left, key=target.index), s.shape, strict=True))
    return s.reshape((1,) * (x.ndim - len(target)) + tuple(sizes.get(c, 1) for c in target))


@dataclass(frozen=True)
class Take:
    """Rows of a table `[v, ...]`, chosen by integer ids; `dtype` is that of the rows returned."""

    dtype: Any = None
    batch = (0, 0)

    @property
    def forward(self) -> bool:
        return True

    def __call__(self, ids: Array, w: Array) -> Array:
        rows = jnp.take(w, ids, axis=0)
        return rows.astype(self.dtype or rows.dtype)

    def split(self) -> tuple["Take", Einsum]:
        return self, Einsum("...r,rd->...d")

    def scale_in(self, ids: Array, s: Array, rest: Callable[[Array], Array]) -> Array:
        """The rows times a factor for each row of the table: ids themselves cannot be scaled; s is `[v, 1]`."""
        rows = rest(ids)
        return rows * jnp.take(s, ids, axis=0).astype(rows.dtype)

    def scale_out(self, y: Array, s: Array) -> Array:
        return jnp.einsum("...d,d->...d", y, jnp.squeeze(s, 0).astype(y.dtype))


@dataclass(frozen=True)
class Ragged:
    """Rows laid out by group, `[p, in]`, each meeting its own group's weight of `[g, in, out]`.

    The groups, experts for instance, are the weight's one lead axis; edits carry it too.
    """

    groups: Groups

    def __call__(self, x: Array, w: Array) -> Array:
        return ragged_matmul(x, w.astype(x.dtype), self.groups)

    @property
    def forward(self) -> bool:
        return True

    def split(self) -> tuple["Ragged", "Ragged"]:
        return self, self

    def scale_in(self, x: Array, s: Array, rest: Callable[[Array], Array]) -> Array:
        return rest(x * jnp.squeeze(s, 2)[self.groups.of_place].astype(x.dtype))

    def scale_out(self, y: Array, s: Array) -> Array:
        return y * jnp.squeeze(s, 1)[self.groups.of_place].astype(y.dtype)


@dataclass(frozen=True)
class Add:
    """A vector added to an activation, along its last axes."""

    batch = (0, 0)

    def __call__(self, x: Array, w: Array) -> Array:
        return x + w.astype(x.dtype).reshape((1,) * (x.ndim - w.ndim) + w.shape)


@struct.dataclass
class Through:
    """What a layer is about to add to the stream, on its way through a place where an edit may stand. `beside` is what
    the layer was given, `stream` what it will be added to. Only edits that fill the place know what to do with it."""

    beside: Any = None
    stream: Any = None
    batch = (0, 0)

    def __call__(self, x: Array, w: Any) -> Array:
        raise Fault("a place in the stream holds an adapter, no weight; see delta.Adapters")


Op = Einsum | Take | Ragged | Add | Through


@runtime_checkable
class Edit(Protocol):
    """A change to one weight, as arrays.

    Array fields carry the weight's lead axes first (the layer scan strips them) and store no shape, so axes are
    counted from the last. `fixed` names the fields that are never trained. An edit may be made of others: fields that
    hold edits, or tuples of them, are taken apart like it. One that fills an empty slot has a true `fills`.
    """

    fixed: tuple[str, ...]

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        """`op` applied to x and the edited w, the fast way."""
        ...

    def dense(self, w: Weight, dtype: Any) -> Array:
        """The edited weight itself."""
        ...

    def lead(self) -> tuple[int, ...] | None:
        """The lead axes along which dropout keys are split; `None` for an edit that draws nothing."""
        ...

    def letters(self, inner: str, outer: str) -> "Edit":
        """Itself with each array replaced by the letters of its axes behind the lead ones, for sharding."""
        ...


@struct.dataclass
class Bound:
    """A weight, or an empty slot, under an edit. No arithmetic has been done: `contract` decides how, when it meets an
    activation."""

    w: Any
    edit: Any
    key: Any = None

    @property
    def ndim(self) -> int:
        return self.w.ndim


def contract(op: Op, x: Array, w: Weight) -> Array:
    if isinstance(w, Bound):
        return w.edit.contract(op, x, w.w, w.key)
    if isinstance(op, Through):
        return x
    if isinstance(w, QArray):
        if isinstance(op, Take) and isinstance(w.format, ByRow) and w.ndim == 2:
            return w.format.rows(w.codes, w.scales, x, op.dtype or jnp.float32)
        if isinstance(op, Einsum) and (y := op.in_few_bits(x, w)) is not None:
            return y
        # Checkpointed, else every dequantised weight would be kept for the backward pass.
        decode_dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        return jax.checkpoint(lambda x, w: op(x, dequantise(w, decode_dtype)), prevent_cse=False)(x, w)
    return op(x, w)


def einsum(spec: str, x: Array, w: Weight) -> Array:
    """`jnp.einsum` of an activation and a weight, in the activation's dtype."""
    return contract(Einsum(spec), x, w)


def take(w: Weight, ids: Array, dtype: Any = None) -> Array:
    """Rows of a weight by ids."""
    return contract(Take(dtype), ids, w)


def ragged(x: Array, w: Weight, groups: Groups) -> Array:
    """Rows `[p, in]`, laid out by group, through their groups' weights `[g, in, out]`."""
    return contract(Ragged(groups), x, w)


def plus(x: Array, bias: Weight | None) -> Array:
    """The activation with a bias along its last axes, if there is one."""
    return x if bias is None else contract(Add(), x, bias)


def through(x: Array, place: Weight | None, beside: Array, stream: Array) -> Array:
    """What a layer adds to the stream as it leaves a place: as it came, if nothing stands there. `beside` is what the
    layer was given, `stream` what x will be added to."""
    return x if place is None else contract(Through(beside, stream), x, place)


def dense(w: Weight, dtype: Any = jnp.float32) -> Array:
    """The weight as one array, whatever kind it is."""
    if isinstance(w, Bound):
        return w.edit.dense(w.w, dtype)
    return dequantise(w, dtype) if isinstance(w, QArray) else w.astype(dtype)


def fills(edit: Any) -> bool:
    """Whether an edit stands in an empty slot, instead of changing a weight."""
    return getattr(edit, "fills", False)


def letters(w: Weight, inner: str, outer: str) -> Any:
    """A tree like the weight with the letters of every array's axes in the array's place."""
    if w is None:
        return None
    if isinstance(w, Bound):
        key = None if w.key is None else ""
        return Bound(letters(w.w, inner, outer), w.edit.letters(inner, outer), key)
    return w.letters(inner, outer) if isinstance(w, QArray) else f"{inner} {outer}".strip()


def constrain_weights(weights: Tree, specs: Mapping[str, ParamSpec], rules: Rules = RULES) -> Tree:
    """One layer's weights laid out for computing, before anything is made of them.

    At the top of the scanned body this makes the leaves themselves travel (int8 codes, low-rank factors), not what is
    computed from them: a dequantised weight is four times the bytes.
    """
    done = {}
    for path, w in trees.flatten(weights).items():
        axes = None if w is None else letters_of(w, specs[path])
        done[path] = None if w is None else jax.tree.map(lambda x, axes: constrain(x, axes, rules), w, axes)
    return trees.unflatten(done)


def letters_of(w: Weight, spec: ParamSpec) -> Any:
    """A tree like one layer's weight with the letters of every array's axes in the array's place."""
    lead, inner, outer = (" ".join(group) for group in spec.groups)
    lead = lead.removeprefix("l").strip()  # of the layers, which the scan has stripped
    return jax.tree.map(lambda axes: f"{lead} {axes}".strip(), letters(w, inner, outer))
