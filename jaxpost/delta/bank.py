# SPDX-License-Identifier: Apache-2.0
"""Many deltas over one base: each example of a batch chooses its own, or none."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.core import Tracer

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.bind import Delta, spread
from jaxpost.delta.contract import Add, Op, Ragged, Through, Weight, contract, dense, fills
from jaxpost.faults import Fault


@struct.dataclass
class Bank:
    """Edits of one form, stacked behind the layer axis (in front, where there is none), and `rows`: int32 `[b]` (under
    the layer axis `[l, b]`), which of them each example of the batch goes through; -1 is none, if `some` may have none.

    Whatever the edit, an example's share of the batch is contracted by its own: the edit is mapped over the examples
    (`jax.vmap`), while the base, which is not mapped, stays one product over the whole batch.
    """

    edit: Any
    rows: Any = None
    some: bool = struct.field(pytree_node=False, default=True)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=("rows",))

    @property
    def fills(self) -> bool:
        return fills(self.edit)

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        if self.rows is None:
            raise Fault("a bank was bound before its entries were chosen: choose them with delta.at first")
        if isinstance(op, Ragged):
            raise Fault("a bank cannot choose among edits of experts' matrices: choose targets outside of the experts")
        rows = jnp.atleast_1d(self.rows)
        if rows.shape[0] != x.shape[op.batch[0]]:
            raise Fault(
                f"entries of a bank were chosen for {rows.shape[0]} examples, and the batch has {x.shape[op.batch[0]]}"
            )
        own = jax.tree.map(lambda leaf: jnp.take(leaf, jnp.maximum(rows, 0), axis=0), self.edit)
        into, out = op.batch

        def one(x: Array, around: Any, edit: Any, row: Array, number: Array, w: Weight) -> Array:
            single = jax.tree.map(lambda leaf: leaf[None], around) if isinstance(op, Through) else op
            x, drop = jnp.expand_dims(x, into), _folded(key, number)
            y = edit.contract(single, x, w, drop)
            if self.some:  # the base's own product is the one within the edit's: it is done once
                y = jnp.where(row >= 0, y, _without(single, x, w, y))
            return jnp.squeeze(y, out)

        around = op if isinstance(op, Through) else None
        axes = (into, 0, 0, 0, 0, _mapped(w))
        return jax.vmap(one, axes, out)(x, around, own, rows, jnp.arange(rows.shape[0]), w)

    def dense(self, w: Weight, dtype: Any) -> Array:
        if self.rows is None or self.rows.ndim:
            raise Fault("a bank is no one weight: choose one of its deltas first (delta.pick)")
        # Under another bank, whose examples come one by one, it is.
        own = jax.tree.map(lambda leaf: leaf[jnp.maximum(self.rows, 0)], self.edit)
        return jnp.where(self.rows >= 0, own.dense(w, dtype), dense(w, dtype))

    def lead(self) -> tuple[int, ...] | None:
        lead, at = self.edit.lead(), 0 if self.rows is None else self.rows.ndim - 1
        return None if lead is None or self.rows is None else (*lead[:at], *lead[at + 1 :])

    def letters(self, inner: str, outer: str) -> "Bank":
        edit = jax.tree.map(lambda axes: f"m {axes}".strip(), self.edit.letters(inner, outer))
        return self.replace(edit=edit, rows="b")  # pyright: ignore[reportAttributeAccessIssue]


def bank(deltas: Sequence[Delta], specs: Tree) -> dict[str, Bank]:
    """Deltas of one form as one delta, of which each example chooses an entry (`at`). `specs` are the model's, or any
    tree of specs at the deltas' paths. Of a network that writes edits the bank holds what it writes. Raises `Fault` for
    deltas of unequal kinds, places or shapes."""
    if not deltas:
        raise Fault("a bank needs at least one delta")
    deltas = [spread(each) for each in deltas]
    first, flat = deltas[0], trees.flatten(specs)
    for number, other in enumerate(deltas[1:], 1):
        _check_alike(first, other, number)
    axes = {path: axis(flat[path].groups[0]) for path in first}
    return {
        path: Bank(jax.tree.map(lambda *leaves, i=axes[path]: jnp.stack(leaves, i), *(d[path] for d in deltas)))
        for path in first
    }


def axis(lead: Sequence[str]) -> int:
    """Where a bank's own axis stands among the lead axes of a weight: behind that of the layers, which the scan takes
    off."""
    return 1 if tuple(lead[:1]) == ("l",) else 0


def at(delta: Delta, rows: Array, specs: Tree, some: bool = True) -> dict[str, Any]:
    """The delta with the entries of its banks chosen for a batch: `rows` `[b]` has a number for each example, -1 for
    none (only where `some` may have none, which costs a product backwards). Raises `Fault` for a number that no entry
    has, where the numbers are known."""
    flat, done = trees.flatten(specs), {}
    for path, edit in delta.items():
        if not isinstance(edit, Bank):
            done[path] = edit
            continue
        lead = axis(flat[path].groups[0])
        size = jax.tree.leaves(edit.edit)[0].shape[lead]
        _check_rows(rows, size, some)
        layers = jax.tree.leaves(edit.edit)[0].shape[:lead]
        chosen = jnp.broadcast_to(jnp.asarray(rows, jnp.int32), (*layers, *jnp.shape(rows)))
        done[path] = edit.replace(rows=chosen, some=some)  # pyright: ignore[reportAttributeAccessIssue]
    return done


def pick(delta: Delta, number: int, specs: Tree) -> dict[str, Any]:
    """One of the deltas that a bank holds."""
    flat = trees.flatten(specs)

    def entry(path: str, edit: Any) -> Any:
        if not isinstance(edit, Bank):
            return edit
        lead = axis(flat[path].groups[0])
        size = jax.tree.leaves(edit.edit)[0].shape[lead]
        if not 0 <= number < size:
            raise Fault(f"a bank of {size} deltas has no number {number}; they count from 0 to {size - 1}")
        return jax.tree.map(lambda leaf: jnp.take(leaf, number, axis=lead), edit.edit)

    return {path: entry(path, edit) for path, edit in delta.items()}


def _check_alike(first: Delta, other: Delta, number: int) -> None:
    if odd := sorted(first.keys() ^ other.keys()):
        holder = f"number {number}" if odd[0] in other else "number 0"
        raise Fault(f"bank: only delta {holder} edits {', '.join(odd[:3])}; all deltas of a bank edit the same places")
    for path in first:
        one, two = first[path], other[path]
        forms = [jax.tree.structure(edit) for edit in (one, two)]
        shapes: list[list[Any]] = [[leaf.shape for leaf in jax.tree.leaves(edit)] for edit in (one, two)]
        if forms[0] != forms[1]:
            what = [type(edit).__name__ for edit in (one, two)]
            said = " and ".join(what) if what[0] != what[1] else f"{what[0]} of unequal settings"
            raise Fault(f"bank: deltas 0 and {number} hold {said} at {path!r}; all deltas of a bank are of one kind")
        if shapes[0] != shapes[1]:
            raise Fault(
                f"bank: at {path!r} delta 0 has the shapes {shapes[0]} and delta {number} {shapes[1]}; train them with "
                "one rank or length, over one base"
            )


def _check_rows(rows: Any, size: int, some: bool) -> None:
    if jnp.ndim(rows) != 1 or not jnp.issubdtype(jnp.result_type(rows), jnp.integer):
        raise Fault("a bank's entries are chosen by one whole number for each example of the batch")
    if isinstance(rows, Tracer):
        return
    least = -1 if some else 0
    for place, row in enumerate(jnp.asarray(rows).tolist()):
        if not least <= row < size:
            known = f"{'-1 is none, and ' if some else ''}they count from 0 to {size - 1}"
            raise Fault(f"example {place} chooses delta {row} of a bank of {size}; {known}")


def _without(op: Op, x: Array, w: Weight, y: Array) -> Array:
    """What an example without an edit has instead of y. Where nothing lies under the bank: what came, if the op lets it
    pass, or else zeros."""
    if w is None and isinstance(op, Add | Through):
        return x
    return jnp.zeros_like(y) if w is None else contract(op, x, w)


def _folded(key: Key | None, number: Array) -> Key | None:
    """An example's own key: what is dropped in one is no matter of the others'."""
    if key is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(key, number) if key.ndim else jax.random.fold_in(key, number)


def _mapped(w: Weight) -> Any:
    """Of what lies under a bank, other banks' rows go with the examples and everything else is shared."""

    def axes(node: Any) -> Any:
        if not isinstance(node, Bank):
            return None
        return node.replace(edit=None, rows=0)  # pyright: ignore[reportAttributeAccessIssue]

    if not any(isinstance(n, Bank) for n in jax.tree.leaves(w, is_leaf=lambda n: isinstance(n, Bank))):
        return None
    return jax.tree.map(axes, w, is_leaf=lambda n: isinstance(n, Bank))
