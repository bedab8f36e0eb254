# SPDX-License-Identifier: Apache-2.0
"""Random weights, straight into the form in which they are stored."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpost import params, quant, shard, trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.params import ParamSpec
from jaxpost.quant import QArray


def drawn(specs: Tree, stored: Tree, mesh: Mesh, key: Key) -> Tree:
    """Random weights for `specs`, laid out on the mesh in the form of `stored` (the same, or `quant.quantise_specs` of
    it).

    A weight that is stored quantised is drawn and quantised a layer at a time, each layer from a key of its own: no
    more than one layer of one weight ever exists in full. Others are what `params.init` makes.
    """
    flat, forms = trees.flatten(specs), trees.flatten(stored)
    places = trees.flatten(shard.shardings(stored, mesh))
    done = {}
    for path, spec in flat.items():
        draw: Any = jax.jit(partial(_one, path, spec, forms[path]), out_shardings=places[path])
        done[path] = None if spec is None else draw(key)
    return trees.unflatten(done)


def _one(path: str, spec: ParamSpec, form: Any, key: Key) -> Array | QArray:
    def draw(spec: ParamSpec, key: Key) -> Any:
        values = params.init({path: spec}, key)[path]
        return quant.quantise(values, spec, form.format) if isinstance(form, QArray) else values

    if not isinstance(form, QArray) or spec.groups[0][:1] != ("l",):
        return draw(spec, key)
    layer = replace(spec, shape=spec.shape[1:], dims=spec.dims.replace("l", "", 1))
    return jax.lax.map(lambda number: draw(layer, jax.random.fold_in(key, number)), jnp.arange(spec.shape[0]))
