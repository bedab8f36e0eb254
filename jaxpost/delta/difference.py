# SPDX-License-Identifier: Apache-2.0
"""The delta between two models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.delta.contract import Bound, dense
from jaxpost.delta.dense import Dense
from jaxpost.delta.insert import Insert
from jaxpost.faults import Fault, nearest


def difference(fine: Tree, base: Tree) -> dict[str, Any]:
    """The delta that turns `base` into `fine`: `Dense(fine - base)` in float32 where they differ, `Insert` where the
    base has an empty slot, nothing where they are equal. So `fold(base, difference(fine, base))` is `fine`.

    Raises `Fault` when the trees do not have the same places and shapes.
    """
    flat_fine, flat_base = trees.flatten(fine), trees.flatten(base)
    if odd := sorted(flat_fine.keys() ^ flat_base.keys()):
        shared = flat_fine.keys() & flat_base.keys()
        raise Fault(f"difference: only one of the two models has {', '.join(odd)}; {nearest(odd[0], shared)}")
    delta: dict[str, Any] = {}
    for path, new in flat_fine.items():
        old = flat_base[path]
        if new is None and old is None:
            continue
        if isinstance(new, Bound) and new.w is None:  # stands in the stream
            if old is None:
                delta[path] = new.edit
            elif not _equal(new, old):
                raise Fault(f"difference: other adapters stand at {path!r} in the two models; a place holds one")
            continue
        if new is None:
            raise Fault(f"difference: the tuned model lacks {path!r}, which the base has")
        if old is None:
            delta[path] = Insert(new)
            continue
        new, old = dense(new, jnp.float32), dense(old, jnp.float32)
        if new.shape != old.shape:
            raise Fault(f"difference: {path!r} is {new.shape} in the tuned model and {old.shape} in the base")
        change = new - old
        if np.any(np.asarray(change)):
            delta[path] = Dense(change)
    return delta


def _equal(one: Any, other: Any) -> bool:
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    same = jax.tree.structure(one) == jax.tree.structure(other)
    return same and all(np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))
