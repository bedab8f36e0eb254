# SPDX-License-Identifier: Apache-2.0
"""Prompts that a small network writes while it is trained (P-tuning, Liu et al. 2021,
https://arxiv.org/abs/2103.10385). What is used afterwards is what it wrote; the network is gone once folded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost.arrays import Array, Float, Tree
from jaxpost.delta.insert import Insert
from jaxpost.delta.method import Method, Place
from jaxpost.delta.prompt import slot, uniform
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, normal

Linear = Mapping[str, Any]
"""`w` [in, out] and `b` [out]."""


@struct.dataclass
class Encoder:
    """Writes a prompt from an `embedding` `[t, d]`: through the `recurrent` layers, if there are any, each a pair of
    LSTMs that read forwards and backwards, and the `linear` ones with rectifiers between them."""

    embedding: Any
    recurrent: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]
    linear: tuple[Linear, ...]
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    def edits(self) -> dict[str, Insert]:
        return {"prompt": Insert(self.rows())}

    def rows(self) -> Float[Array, "t d"]:
        """What the network writes."""
        x = self.embedding
        for forward, backward in self.recurrent:
            x = jnp.concatenate([lstm(forward, x), lstm(backward, x[::-1])[::-1]], axis=-1)
        for number, layer in enumerate(self.linear):
            x = linear(layer, jax.nn.relu(x) if number else x)
        return x


def linear(layer: Linear, x: Array) -> Array:
    return x @ layer["w"] + layer["b"][None]


def lstm(w: Mapping[str, Any], x: Float[Array, "t i"]) -> Float[Array, "t h"]:
    """An LSTM's states (Hochreiter and Schmidhuber 1997) over a sequence: `inner` [i, 4h] meets the input, `back` [h,
    4h] the state before, `b` [4h]; gates in the order input, forget, cell, output."""

    def step(carry: tuple[Array, Array], fed: Array) -> tuple[tuple[Array, Array], Array]:
        state, cell = carry
        enter, forget, new, out = jnp.split(fed + state @ w["back"], 4)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
        state = jax.nn.sigmoid(out) * jnp.tanh(cell)
        return (state, cell), state

    zeros = jnp.zeros(w["back"].shape[0], x.dtype)
    return jax.lax.scan(step, (zeros, zeros), x @ w["inner"] + w["b"][None])[1]


@dataclass(frozen=True)
class Ptuning(Method):
    """P-tuning: `tokens` rows written by an `lstm` (bidirectional, two layers, and two linear ones behind it; the
    paper's) or an `mlp` (three linear layers) of width `hidden` (0: the model's own)."""

    tokens: int = 20
    encoder: Literal["lstm", "mlp"] = "lstm"
    hidden: int = 0
    place: Place = "before"

    @property
    def virtual(self) -> int:
        return self.tokens

    def __call__(self, specs: Tree) -> dict[str, Encoder]:
        if self.hidden < 0:
            raise Fault(f"ptuning: hidden is {self.hidden}; give a width, or 0 for the model's own")
        prompt = slot(specs, self.tokens)
        width = prompt.shape[1]
        hidden = self.hidden or width
        if self.encoder == "mlp":
            recurrent, sizes = (), (width, hidden, hidden, width)
        else:
            recurrent = tuple(_both_ways(prompt, size, hidden) for size in (width, 2 * hidden))
            sizes = 2 * hidden, 2 * hidden, width
        return {"encoder": Encoder(replace(prompt, init=normal(1.0)), recurrent, linears(prompt, sizes))}


def linears(like: ParamSpec, sizes: Sequence[int]) -> tuple[Linear, ...]:
    """Specs of linear layers from each size to the next."""
    return tuple(
        {"w": matrix(like, (a, b), uniform(a)), "b": matrix(like, (b,), uniform(a))}
        for a, b in zip(sizes, sizes[1:], strict=False)
    )


def matrix(like: ParamSpec, shape: tuple[int, ...], init: Any) -> ParamSpec:
    """The spec of a network's own weight, which is on every device whole."""
    dims = ": i : o" if len(shape) == 2 else ": : o"
    return replace(like, shape=shape, dims=dims, init=init, layers=())


def _both_ways(like: ParamSpec, size: int, hidden: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    shapes = {"inner": (size, 4 * hidden), "back": (hidden, 4 * hidden), "b": (4 * hidden,)}
    one = {name: matrix(like, shape, uniform(hidden)) for name, shape in shapes.items()}
    return one, one
