# SPDX-License-Identifier: Apache-2.0
"""A delta is a flat dict from path to edit. Binding lays it over a tree; folding makes it part of one."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxpost import trees
from jaxpost.arrays import Key, Tree
from jaxpost.delta.contract import Bound, Edit, fills
from jaxpost.delta.insert import Insert
from jaxpost.faults import Fault, nearest

Delta = Mapping[str, Any]
"""From path to edit. Itself a pytree: sharded, saved and transformed like parameters. An entry under a name that is no
path may stand for edits at several: a `Spread`."""


@runtime_checkable
class Spread(Protocol):
    """One trained thing from which edits at several paths are computed, such as the network that writes a prefix. It is
    asked for them whenever the delta is laid over a tree, so that gradients reach it, and is gone once folded."""

    fixed: tuple[str, ...]

    def edits(self) -> dict[str, Edit]: ...


def spread(delta: Delta) -> dict[str, Any]:
    """The delta with edits in the places of what stands for them."""
    flat: dict[str, Any] = {}
    for path, edit in delta.items():
        for place, one in edit.edits().items() if _spreads(edit) else ((path, edit),):
            if place in flat:
                raise Fault(f"delta: {place!r} is edited twice; stack two deltas by binding one over the other")
            flat[place] = one
    return flat


def _spreads(edit: Any) -> bool:
    return callable(getattr(edit, "edits", None))


def bind(params: Tree, delta: Delta, key: Key | None = None) -> Tree:
    """The tree with every edited leaf replaced by the pair of leaf and edit. No arithmetic happens here.

    Edits that draw random numbers (dropout) do so when a key is given, one per layer, and not without.
    Raises `Fault` for a path that the tree lacks, and for an `Insert` into a place that is taken.
    """
    flat = trees.flatten(params)
    for path, edit in spread(delta).items():
        where = _place(flat, path, edit)
        if isinstance(edit, Insert):
            flat[path] = edit.value
            continue
        lead = edit.lead()
        own = None
        if key is not None and lead is not None:
            own = jax.random.fold_in(key, zlib.crc32(f"{path} {_depth(where)}".encode()))
            own = jax.random.split(own, lead) if lead else own
        flat[path] = Bound(where, edit, own)
    return trees.unflatten(flat)


def _depth(w: Any) -> int:
    """How many edits lie on a weight already: stacked deltas bound with one key must not drop the same things."""
    return 1 + _depth(w.w) if isinstance(w, Bound) else 0


def fold(params: Tree, delta: Delta) -> Tree:
    """The tree that the bound one stands for. Edited leaves are computed, and stay, in float32: rounding a small
    change into a 16-bit weight can lose more than half of it, so whoever exports rounds once, at the end."""
    flat = trees.flatten(params)
    for path, edit in spread(delta).items():
        base = _place(flat, path, edit)
        if isinstance(edit, Insert):
            flat[path] = edit.value
        else:  # what stands in the stream has no weight to become part of
            flat[path] = Bound(None, edit) if fills(edit) and base is None else edit.dense(base, jnp.float32)
    return trees.unflatten(flat)


def partition(delta: Delta) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trainable half and the fixed half, each with `None` in the other's fields.

    Only the trainable half may meet grad and the optimiser: a scale would be trained and decayed, and integer leaves
    have no gradient.
    """
    trainable = {path: _half(edit, lambda fixed: not fixed) for path, edit in delta.items()}
    return trainable, {path: _half(edit, lambda fixed: fixed) for path, edit in delta.items()}


def combine(trainable: Delta, fixed: Delta) -> dict[str, Any]:
    """The inverse of `partition`."""
    return {path: _whole(edit, fixed[path]) for path, edit in trainable.items()}


def _half(edit: Any, keep: Callable[[bool], bool]) -> Any:
    """The edit with `None` in those fields that are not kept; `keep` is asked by whether a field is fixed."""
    if isinstance(edit, tuple):
        return tuple(_half(part, keep) for part in edit)
    done = {}
    for name in _arrays(edit):
        value = getattr(edit, name)
        if name not in edit.fixed and _made_of_edits(value):
            done[name] = _half(value, keep)
        else:
            done[name] = value if keep(name in edit.fixed) else None
    return edit.replace(**done)


def _whole(one: Any, other: Any) -> Any:
    if isinstance(one, tuple):
        return tuple(_whole(*parts) for parts in zip(one, other, strict=True))
    done = {}
    for name in _arrays(one):
        mine, rest = getattr(one, name), getattr(other, name)
        if name not in one.fixed and _made_of_edits(mine):
            done[name] = _whole(mine, rest)
        elif name in one.fixed:
            done[name] = rest
    return one.replace(**done)


def _arrays(edit: Any) -> list[str]:
    """The fields of an edit that hold arrays, or other edits."""
    return [f.name for f in dataclasses.fields(edit) if f.metadata.get("pytree_node", True)]


def _made_of_edits(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return bool(parts) and all(hasattr(part, "fixed") for part in parts)


def _place(flat: Mapping[str, Any], path: str, edit: Any) -> Any:
    if path not in flat:
        raise Fault(f"delta: the model has no parameter {path!r}; {nearest(path, flat)}")
    kind = type(edit).__name__
    if fills(edit) and flat[path] is not None:
        raise Fault(
            f"delta: {path!r} already holds a weight, and a slot holds one; {kind} fills empty slots, Dense or LowRank "
            "edit weights"
        )
    if not fills(edit) and flat[path] is None:
        raise Fault(f"delta: {path!r} is an empty slot of this model, and {kind} edits weights; Insert fills slots")
    return flat[path]
