# SPDX-License-Identifier: Apache-2.0
"""Tuning the biases alone (BitFit, Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199)."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.delta.dense import Dense
from jaxpost.delta.insert import Insert
from jaxpost.delta.method import Method
from jaxpost.faults import Fault
from jaxpost.params import constant


@dataclass(frozen=True)
class BitFit(Method):
    """All biases that the model has, those of its norms too; with `add` also one, from zero on, wherever the family
    has a place for a bias and none in it. Raises `Fault` for a model in which there is nothing to tune."""

    add: bool = False

    def __call__(self, specs: Tree) -> dict[str, Any]:
        places = {path: spec for path, spec in trees.flatten(specs).items() if path.endswith("_bias")}
        made: dict[str, Any] = {}
        for path, spec in places.items():
            start = replace(spec, init=constant(0.0), dtype=jnp.float32, optional=False)
            if not spec.optional or self.add:
                made[path] = Insert(start) if spec.optional else Dense(start)
        if not made:
            raise Fault("biases: this model has none; BitFit(add=True) adds them, and tunes those")
        return made
