# SPDX-License-Identifier: Apache-2.0
"""Keys and values of every block at places before the text (prefix tuning, Li and Liang 2021,
https://arxiv.org/abs/2101.00190; deep prompts of P-tuning v2, Liu et al. 2022, https://arxiv.org/abs/2110.07602)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Tree
from jaxpost.delta.bind import Delta
from jaxpost.delta.encoders import Linear, linear, linears, matrix
from jaxpost.delta.insert import Insert
from jaxpost.delta.method import Given, Method, Place
from jaxpost.delta.prompt import encoded
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, normal

Slots = tuple[tuple[str, tuple[int, ...], bool], ...]
"""Of each block the path of its attention, the numbers of its layers, and whether they are stacked."""


@struct.dataclass
class Reparametrised:
    """Writes all prefixes from one `embedding` `[t, m]`: `tanh(embedding @ into) @ out`, whose rows hold the layers'
    keys and values of one place, k0 v0 k1 v1 ..., each of `shape` (heads, head size)."""

    embedding: Any
    into: Linear
    out: Linear
    slots: Slots = struct.field(pytree_node=False)
    shape: tuple[int, int] = struct.field(pytree_node=False)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    def edits(self) -> dict[str, Insert]:
        flat = linear(self.out, jnp.tanh(linear(self.into, self.embedding)))
        return laid(jnp.reshape(flat, (flat.shape[0], -1, 2, *self.shape)), self.slots)


def laid(rows: Array, slots: Slots) -> dict[str, Insert]:
    """Keys and values `[t, layers, 2, k, h]` as what fills the slots of each block."""
    done = {}
    for path, numbers, stacked in slots:
        for which, name in enumerate(("prefix_k", "prefix_v")):
            own = jnp.moveaxis(rows[:, jnp.asarray(numbers), which], 1, 0)
            done[f"{path}/{name}"] = Insert(own if stacked else own[0])
    return done


@dataclass(frozen=True)
class Prefix(Method):
    """Prefix tuning: `tokens` keys and values in each block, trained in float32. Keys are used as they are, not turned
    by their positions; the text follows at position `tokens`.

    hidden: 0 trains the numbers themselves (P-tuning v2); else they are written by a network of that width with a tanh
    between two linear layers (the paper's, which found it steadier), which folding drops. init (of the numbers
    themselves): `random` N(0, 0.02), or `text`: the keys and values that the base itself has for the words of `text`
    (the paper's best for little data), so that tuning starts as if the text stood there.
    """

    tokens: int = 20
    hidden: int = 0
    init: Literal["random", "text"] = "random"
    text: str = ""
    place: Place = "before"

    @property
    def virtual(self) -> int:
        return self.tokens

    def __call__(self, specs: Tree) -> dict[str, Any]:
        if self.tokens < 1 or self.hidden < 0:
            raise Fault(f"prefix: tokens is {self.tokens} and hidden {self.hidden}; they must be at least 1 and 0")
        if self.init == "text" and (self.hidden or not self.text):
            raise Fault("prefix: init 'text' needs delta.text, and delta.hidden 0: a network cannot start from numbers")
        flat = trees.flatten(specs)
        found = {path: flat[path] for path in flat if path.endswith(("/prefix_k", "/prefix_v"))}
        if self.hidden:
            return {"prefix": self._network(found)}
        return {path: Insert(self._own(spec)) for path, spec in found.items()}

    def _own(self, spec: ParamSpec) -> ParamSpec:
        shape = (*spec.sizes(0), self.tokens, *spec.sizes(2))
        return replace(spec, shape=shape, init=normal(0.02), dtype=jnp.float32, optional=False, derived=True)

    def _network(self, found: dict[str, ParamSpec]) -> Reparametrised:
        keys = {path.removesuffix("/prefix_k"): spec for path, spec in found.items() if path.endswith("k")}
        slots = tuple((path, spec.layers, bool(spec.groups[0])) for path, spec in keys.items())
        like = self._own(next(iter(keys.values())))
        heads, size = like.sizes(2)
        layers, width = sum(len(numbers) for _, numbers, _ in slots), heads * size
        into, out = linears(like, (width, self.hidden, layers * 2 * width))
        return Reparametrised(matrix(like, (self.tokens, width), normal(1.0)), into, out, slots, (heads, size))

    def start(self, delta: Delta, given: Given) -> Delta:
        if self.init == "random":
            return delta
        assert given.attended is not None, "a prefix starts from what a model makes of the text"
        ids = jnp.resize(jnp.asarray(encoded(given, self.text)), (self.tokens,))
        kept = given.attended(ids)

        def own(path: str, edit: Insert) -> Insert:
            block, name = path.removesuffix("_k").removesuffix("_v").rsplit("/attn/", 1)[0], path[-1]
            value = kept[block][0 if name == "k" else 1].astype(jnp.float32)
            return Insert(value if edit.value.ndim == value.ndim else value[0])

        return {path: own(path, edit) for path, edit in delta.items()}
