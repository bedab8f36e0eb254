# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.contract import Op, Take, Weight, contract, dense
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, constant, normal


@struct.dataclass
class LowRank:
    """`w + scale * a @ b`, with a `[lead, in, r]`, b `[lead, r, out]` and scale `[lead]`.

    The activation goes through the factors, `(x @ a) * scale @ b`, beside the base; with a key, inverted dropout at
    rate `dropout` acts on the x that the factors see (not on ids, which cannot be dropped).
    """

    a: Any
    b: Any
    scale: Any
    dropout: float = struct.field(pytree_node=False, default=0.0)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=("scale",))

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        down, up = op.split()
        y = contract(op, x, w)
        if key is not None and self.dropout and not isinstance(op, Take):
            kept = jax.random.bernoulli(key, 1.0 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1.0 - self.dropout), 0.0).astype(x.dtype)
        low = down(x, self.a)
        return y + up(low * self.scale.astype(low.dtype), self.b).astype(y.dtype)

    def dense(self, w: Weight, dtype: Any) -> Array:
        whole = dense(w, jnp.float32)
        lead = self.scale.shape
        a = self.a.astype(jnp.float32).reshape(*lead, -1, self.a.shape[-1])
        b = self.b.astype(jnp.float32).reshape(*lead, self.a.shape[-1], -1)
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) * self.scale[..., None, None]
        return (whole + update.reshape(whole.shape)).astype(dtype)

    def lead(self) -> tuple[int, ...] | None:
        return self.scale.shape if self.dropout else None

    def letters(self, inner: str, outer: str) -> "LowRank":
        return self.replace(  # pyright: ignore[reportAttributeAccessIssue]
            a=f"{inner} r", b=f"r {outer}", scale=""
        )


def lora(
    specs: Tree,
    rank: int = 8,
    alpha: float = 8.0,
    targets: Iterable[str] = ("q", "k", "v", "o", "gate", "up", "down"),
    dropout: float = 0.0,
    rank_stabilised: bool = False,
    dtype: Any = jnp.float32,
) -> dict[str, LowRank]:
    """LoRA on the targets as a delta of specs: `scale = alpha / rank`, or `alpha / sqrt(rank)` when rank-stabilised
    (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).

    a starts as N(0, 1/rank^2) and b as zero, so a fresh delta changes nothing. Raises `Fault` for targets that match
    no weight, or one that is no map (a norm, a bias).
    """
    if rank < 1:
        raise Fault(f"lora: rank is {rank}; it must be at least 1")
    flat = {path: spec for path, spec in trees.flatten(specs).items() if not spec.optional}
    scale = alpha / (math.sqrt(rank) if rank_stabilised else rank)
    delta = {}
    for path in trees.select(flat, targets, "lora targets"):
        spec = flat[path]
        lead, inner, outer = spec.groups
        if not inner or not outer:
            raise Fault(f"lora targets: {path!r} is no matrix; name weights such as q, v or down")
        factor = replace(spec, dtype=dtype, derived=True)
        delta[path] = LowRank(
            a=replace(
                factor,
                shape=(*spec.sizes(0), *spec.sizes(1), rank),
                dims=f"{' '.join(lead)} : {' '.join(inner)} : r",
                init=normal(1.0 / rank),
            ),
            b=replace(
                factor,
                shape=(*spec.sizes(0), rank, *spec.sizes(2)),
                dims=f"{' '.join(lead)} : r : {' '.join(outer)}",
                init=constant(0.0),
            ),
            scale=ParamSpec(spec.sizes(0), f"{' '.join(lead)} : :", constant(scale), derived=True),
            dropout=dropout,
        )
    return delta
