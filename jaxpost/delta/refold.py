# SPDX-License-Identifier: Apache-2.0
"""Folding a delta into weights that stay quantised, and what that costs."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxpost import trees
from jaxpost.arrays import Array, Tree
from jaxpost.delta.bind import Delta, fold, spread
from jaxpost.quant import QArray, dequantise, quantise_like


@dataclass(frozen=True)
class Drift:
    """How far each layer's matrix of one weight lies from what it should have become (root of the sum of squares): as a
    share of that, and of what the delta was to change it by, above one where it would be nearer without the delta."""

    of_weight: np.ndarray
    of_change: np.ndarray


def refold(params: Tree, delta: Delta) -> tuple[Tree, dict[str, Drift]]:
    """`fold`, with every weight that was quantised dequantised, edited, and quantised again in its own format; and how
    far each of those has drifted from the exact fold. The others are exact."""
    edits, flat, drifts = spread(delta), trees.flatten(params), {}
    exact = {path: edit for path, edit in edits.items() if not isinstance(flat.get(path), QArray)}
    done = trees.flatten(fold(params, exact))
    for path in edits.keys() - exact.keys():
        done[path], drifts[path] = _refolded(flat[path], edits[path])
    return trees.unflatten(done), {path: drifts[path] for path in flat if path in drifts}


def _refolded(old: QArray, edit: object) -> tuple[QArray, Drift]:
    wanted = fold({"w": old}, {"w": edit})["w"]
    new = quantise_like(wanted, old)
    off = _norms(dequantise(new) - wanted, old)
    change, whole = _norms(wanted - dequantise(old), old), _norms(wanted, old)
    return new, Drift(_share(off, whole), _share(off, change))


def _norms(x: Array, like: QArray) -> np.ndarray:
    """Of each matrix, its lead axes taken as one."""
    behind = tuple(range(x.ndim - like.inner - like.outer, x.ndim))
    return np.sqrt(np.asarray(jnp.sum(jnp.square(x), axis=behind), np.float64)).ravel()


def _share(part: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.where(of == 0, np.where(part == 0, 0.0, np.inf), part / np.where(of == 0, 1.0, of))
