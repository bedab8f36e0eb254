# SPDX-License-Identifier: Apache-2.0
"""A copy of bound weights in which the edits are part of the weights."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.delta.bank import Bank
from jaxpost.delta.contract import Bound, dense
from jaxpost.models.architecture import Decoder


def merged(config: Decoder, weights: Tree) -> Tree:
    """Bound weights as plain ones of the config's type, which are faster to sample from: beside each product an update
    is several small ones, and a step of decoding is short.

    Rounding to 16 bits moves what the trainer says of the samples a little; where that matters, sample from the bound
    weights. Banks, which are no one weight, and what fills an empty slot stay as they are.
    """
    whole: Any = jax.jit(lambda w: dense(w, jnp.dtype(config.dtype)))
    flat = trees.flatten(weights)
    return trees.unflatten({path: whole(w) if _is_one(w) else w for path, w in flat.items()})


def _is_one(w: Any) -> bool:
    if not isinstance(w, Bound) or w.w is None:
        return False
    parts = jax.tree.leaves(w, is_leaf=lambda node: isinstance(node, Bank))
    return not any(isinstance(part, Bank) for part in parts)
