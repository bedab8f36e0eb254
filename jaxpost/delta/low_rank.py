# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from jaxpost.arrays import Array, Key, everywhere
from jaxpost.delta.contract import Add, Bound, Einsum, Op, Take, Through, Weight, contract, dense
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.kernels.lowrank_matmul import lowrank_fused
from jaxpost.params import Init, ParamSpec
from jaxpost.quant import QArray


@struct.dataclass
class LowRank:
    """`w + scale * a @ b`, with a `[lead, in, r]`, b `[lead, r, out]` and scale `[lead]`.

    The activation goes through the factors, `(x @ a) @ (scale b)`, beside the base; with a key, inverted dropout at
    rate `dropout` acts on the x that the factors see (not on ids, which cannot be dropped).
    """

    a: Any
    b: Any
    scale: Any
    dropout: float = struct.field(pytree_node=False, default=0.0)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=("scale",))

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        assert not isinstance(op, Add | Through), "a low-rank update is one of a matrix"
        # The scale has the lead axes that are left (experts), which stand first in the factors but not in x.
        scale = self.scale.astype(jnp.float32)
        b = self.b * scale.reshape(*scale.shape, *(1,) * (self.b.ndim - scale.ndim))
        dropped = key is not None and self.dropout and not isinstance(op, Take)
        if not dropped and (y := _in_one(op, x, w, self.a, b)) is not None:
            return y
        down, up = op.split()
        y = contract(op, x, w)
        if key is not None and dropped:
            key = key if not key.ndim else key[(0,) * key.ndim]  # experts: each row of x meets one of them
            kept = jax.random.bernoulli(key, 1.0 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1.0 - self.dropout), everywhere(0.0, kept, x.dtype))
        first, second = (self.a, b) if op.forward else (b, self.a)
        return y + up(down(x, first), second).astype(y.dtype)

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


def _in_one(op: Op, x: Array, w: Weight, a: Array, b: Array) -> Array | None:
    """`x w + (x a) b` where one operation does both faster than three products; otherwise `None`."""
    inner = op.merged if isinstance(op, Einsum) else 0
    if not isinstance(op, Einsum) or not inner or w is None or isinstance(w, Bound):
        return None
    if isinstance(w, QArray) and (y := op.in_few_bits(x, w, (a, b))) is not None:
        return y

    def local(x: Array, w: Array | QArray, a: Array, b: Array) -> Array:
        rows, rank = x.shape[:-inner], a.shape[-1]
        flat = x.reshape(math.prod(rows), -1)
        y = lowrank_fused(flat, w, a.reshape(-1, rank), b.reshape(rank, -1))
        return checkpoint_name(y, "product").reshape(*rows, *b.shape[1:])

    try:
        return op.on_pieces(local, x, w, a, b)
    except Unsupported:
        return None


class Factors:
    """An edit that is a low-rank update, but made of other things than what it trains."""

    def low_rank(self) -> LowRank:
        raise NotImplementedError

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        return self.low_rank().contract(op, x, w, key)

    def dense(self, w: Weight, dtype: Any) -> Array:
        return self.low_rank().dense(w, dtype)

    def lead(self) -> tuple[int, ...] | None:
        return self.low_rank().lead()


def down(spec: ParamSpec, rank: int, init: Init, padding: Sequence[int] = ()) -> ParamSpec:
    """The spec of a factor `[lead, in, rank]` for a weight of that spec. Of each layer's columns `padding` are never
    trained."""
    lead, inner, _ = (" ".join(letters) for letters in spec.groups)
    shape, idle = (*spec.sizes(0), *spec.sizes(1), rank), _idle(padding, spec.sizes(1))
    return _beside(spec, shape, f"{lead} : {inner} : r", init, idle)


def up(spec: ParamSpec, rank: int, init: Init, padding: Sequence[int] = ()) -> ParamSpec:
    """The spec of a factor `[lead, rank, out]`, of each layer's rows `padding` never trained."""
    lead, _, outer = (" ".join(letters) for letters in spec.groups)
    shape, idle = (*spec.sizes(0), rank, *spec.sizes(2)), _idle(padding, spec.sizes(2))
    return _beside(spec, shape, f"{lead} : r : {outer}", init, idle)


def between(spec: ParamSpec, init: Init, *rank: int) -> ParamSpec:
    """The spec of a number for each weight of the lead axes, or for each place of its rank too."""
    dims = f"{' '.join(spec.groups[0])} : : {'r' * len(rank)}"
    return _beside(spec, (*spec.sizes(0), *rank), dims, init)


def _beside(spec: ParamSpec, shape: tuple[int, ...], dims: str, init: Init, idle: tuple[int, ...] = ()) -> ParamSpec:
    return replace(spec, shape=shape, dims=dims, init=init, dtype=jnp.float32, derived=True, idle=idle)


def _idle(padding: Sequence[int], sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(number * math.prod(sizes) for number in padding) if any(padding) else ()
