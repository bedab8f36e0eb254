# SPDX-License-Identifier: Apache-2.0
"""A delta is a flat dict from path to edit. Binding lays it over a tree; folding makes it part of one."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost import trees
from jaxpost.arrays import Key, Tree
from jaxpost.delta.contract import Bound, Edit
from jaxpost.delta.insert import Insert
from jaxpost.faults import Fault, nearest

Delta = Mapping[str, Any]
"""From path to edit. Itself a pytree: sharded, saved and transformed like parameters."""


def bind(params: Tree, delta: Delta, key: Key | None = None) -> Tree:
    """The tree with every edited leaf replaced by the pair of leaf and edit. No arithmetic happens here.

    Edits that draw random numbers (dropout) do so when a key is given, one per layer, and not without.
    Raises `Fault` for a path that the tree lacks, and for an `Insert` into a place that is taken.
    """
    flat = trees.flatten(params)
    for path, edit in delta.items():
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
    for path, edit in delta.items():
        base = _place(flat, path, edit)
        flat[path] = edit.value if isinstance(edit, Insert) else edit.dense(base, jnp.float32)
    return trees.unflatten(flat)


def partition(delta: Delta) -> tuple[dict[str, Edit], dict[str, Edit]]:
    """The trainable half and the fixed half, each with `None` in the other's fields.

    Only the trainable half may meet grad and the optimiser: a scale would be trained and decayed, and integer leaves
    have no gradient.
    """
    trainable, fixed = {}, {}
    for path, edit in delta.items():
        trainable[path] = edit.replace(**{name: None for name in _arrays(edit) if name in edit.fixed})
        fixed[path] = edit.replace(**{name: None for name in _arrays(edit) if name not in edit.fixed})
    return trainable, fixed


def combine(trainable: Delta, fixed: Delta) -> dict[str, Edit]:
    """The inverse of `partition`."""
    return {
        path: edit.replace(**{name: getattr(fixed[path], name) for name in _arrays(edit) if name in edit.fixed})
        for path, edit in trainable.items()
    }


def _arrays(edit: Any) -> list[str]:
    """The fields of an edit that hold arrays."""
    return [f.name for f in dataclasses.fields(edit) if f.metadata.get("pytree_node", True)]


def _place(flat: Mapping[str, Any], path: str, edit: Any) -> Any:
    if path not in flat:
        raise Fault(f"delta: the model has no parameter {path!r}; {nearest(path, flat)}")
    if isinstance(edit, Insert) and flat[path] is not None:
        raise Fault(f"delta: {path!r} already holds a weight; Insert fills empty slots, Dense or LowRank edit weights")
    if not isinstance(edit, Insert) and flat[path] is None:
        raise Fault(f"delta: {path!r} is an empty slot of this model; only Insert can fill it")
    return flat[path]
