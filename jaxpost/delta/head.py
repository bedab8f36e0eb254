# SPDX-License-Identifier: Apache-2.0
"""A head that says which class something belongs to, or how good it is, where a language model has none."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.delta.insert import Insert
from jaxpost.delta.method import Method
from jaxpost.faults import Fault
from jaxpost.params import constant, normal


@dataclass(frozen=True)
class Head(Method):
    """A linear map from the last hidden states to the scores of `classes` classes, N(0, 0.02) with a bias of zero, in
    float32. For spans there are two: where one starts, and where it ends. One alone is a score: how good a text is (a
    reward model), or what is still to come (a critic). `Both` trains it with something else."""

    classes: int = 2

    def __call__(self, specs: Tree) -> dict[str, Insert]:
        if self.classes < 1:
            raise Fault(f"head: classes is {self.classes}; one is a score, and two or more tell something apart")
        flat, made = trees.flatten(specs), {}
        for path, init in (("heads/classes", normal(0.02)), ("heads/classes_shift", constant(0.0))):
            shape = (*flat[path].sizes(1), self.classes)
            value = replace(flat[path], shape=shape, init=init, dtype=jnp.float32, optional=False, derived=True)
            made[path] = Insert(value)
        return made
