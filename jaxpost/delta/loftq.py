# SPDX-License-Identifier: Apache-2.0
"""A quantised base and a low-rank update made for each other (LoftQ, Li et al. 2023,
https://arxiv.org/abs/2310.08659)."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from jaxpost import params, trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.contract import dense
from jaxpost.delta.inits import decomposed, pissa
from jaxpost.delta.lora import Lora
from jaxpost.delta.low_rank import LowRank
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec
from jaxpost.quant import Format, QArray, quantise, quantise_tree
from jaxpost.quant.qarray import TARGETS, is_quantised


def loftq(
    weights: Tree,
    specs: Tree,
    method: Lora,
    format: Format,
    key: Key,
    targets: Iterable[str] = TARGETS,
    rounds: int = 5,
) -> tuple[Tree, dict[str, Any]]:
    """The quantised base, and the delta to train over it, whose sum is nearer to the weights than the base alone: what
    is lost in the format is where the delta starts.

    In turns, `rounds` times, the base is what the format makes of a weight without its update, and the update the best
    of its rank for what the base lacks. It needs the weights as they were and makes another base than quantising does,
    so it comes before a run; no method can start like that over a base which is quantised already.
    """
    if rounds < 1:
        raise Fault(f"loftq: rounds is {rounds}; it must be at least 1")
    flat, of = trees.flatten(quantise_tree(weights, specs, format, targets)), trees.flatten(specs)
    begun = params.init(method(specs), key)
    whole = trees.flatten(weights)
    for path, edit in begun.items():
        if is_quantised(flat[path]):
            if not isinstance(edit, LowRank):
                raise Fault(
                    f"loftq: {path!r} has a start of its own ({type(edit).__name__}); use a Lora with drawn ones"
                )
            flat[path], begun[path] = _turns(whole[path], of[path], edit, format, rounds)
    return trees.unflatten(flat), begun


def _turns(w: Array, spec: ParamSpec, edit: LowRank, format: Format, rounds: int) -> tuple[QArray, LowRank]:
    base, low = quantise(w, spec, format), edit
    for turn in range(rounds):
        if turn:
            base = quantise(w.astype(jnp.float32) - low.dense(jnp.zeros(w.shape), jnp.float32), spec, format)
        low = decomposed(pissa, w.astype(jnp.float32) - dense(base), edit)
    return base, low
