# SPDX-License-Identifier: Apache-2.0
"""Attention by XLA's own matrix products, a block of queries and one of keys at a time: nothing of tokens times tokens
is ever there, and blocks that no query can see are left out. A running maximum makes softmaxes of blocks one
(https://arxiv.org/abs/1805.02867); backwards scores are made again (https://arxiv.org/abs/2205.14135).

It is for long rows that no kernel takes: on CPUs, in float32, with capped scores and heads of 256, packed on older
GPUs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpost.arrays import Array
from jaxpost.kernels.attention.blocks import padded, unit
from jaxpost.kernels.attention.reference import KEPT, LEAST, grouped, squashed
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.shard import platform

FLOAT32: Any = {"preferred_element_type": jnp.float32}
"""What products are added up in."""


class How(NamedTuple):
    """What is the same for all rows: tokens in a block, the window, scale and cap, and whether a segment's tokens stand
    next to each other, so that a window of positions is one of places."""

    block: int
    window: int | None
    scale: float
    cap: float | None
    joined: bool

    def pairs(self, blocks: int) -> np.ndarray:
        """Blocks of queries with those of keys that they may see, keys in order, their own block last."""
        reach = self.window if self.window is not None and self.joined else blocks * self.block
        firsts = [max(0, (i * self.block - reach + 1) // self.block) for i in range(blocks)]
        return np.array([(i, j) for i, first in enumerate(firsts) for j in range(first, i + 1)], np.int32)


class Blocks(NamedTuple):
    """Rows cut into blocks, which are the first axis: queries `[c b s k g h]`, keys and values `[c b t k h]`, segments
    and positions `[c b s]`."""

    q: Array
    k: Array
    v: Array
    segments: Array
    positions: Array

    def scores(self, how: How, i: Array, j: Array) -> tuple[Array, Any]:
        """Of a block of queries and one of keys `[b k g s t]`, and what brings their gradient to the products."""
        same = self.segments[i][:, :, None] == self.segments[j][:, None, :]
        back = self.positions[i][:, :, None] - self.positions[j][:, None, :]
        visible = same & (back >= 0)
        visible = visible if how.window is None else visible & (back < how.window)
        products = jnp.einsum("bskgh,btkh->bkgst", self.q[i], self.k[j], preferred_element_type=jnp.float32)
        return jax.vjp(lambda products: squashed(products, visible, how.scale, how.cap), products)


def attention(q: Array, k: Array, v: Array, rows: Any, window: int | None, scale: float, cap: float | None) -> Array:
    tokens = q.shape[1]
    if tokens <= 2 * largest():
        raise Unsupported(f"rows of {tokens} tokens are short enough to be taken whole")
    how = How(unit(tokens, largest(), largest() // 8), window, scale, cap, rows.most is not None)
    arrays = (padded(x, how.block) for x in (grouped(q, k.shape[2]), k, v, rows.segments, rows.positions))
    out: Any = attend(how, *arrays)
    return out.reshape(q.shape[0], -1, *q.shape[2:])[:, :tokens]


def largest() -> int:
    """Tokens of a block, at most. On a CPU what stays in a cache was fastest. On accelerators, not measured, a step
    over a pair of blocks is 16 to 19 kernels, of which there should be few."""
    return 256 if platform() == "cpu" else 1024


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(how: How, q: Array, k: Array, v: Array, segments: Array, positions: Array) -> Array:
    """Attention `[b s k g h]` of whole blocks of queries `[b s k g h]`."""
    return _forward(how, q, k, v, segments, positions)[0]


def _forward(how: How, *arrays: Array) -> tuple[Array, Any]:
    blocks = Blocks(*(_cut(how, x) for x in arrays))
    count, batch, size, kv_heads, group, width = blocks.q.shape
    each = (count, batch, kv_heads, group, size)

    def step(state: tuple[Array, ...], pair: Array) -> tuple[tuple[Array, ...], None]:
        i, j = pair
        most, total, sums = (x[i] for x in state)
        scores, _ = blocks.scores(how, i, j)
        larger = jnp.maximum(most, jnp.max(scores, axis=-1))
        fading, weights = jnp.exp(most - larger), jnp.exp(scores - larger[..., None])
        added = jnp.einsum("bkgst,btkh->bkgsh", weights.astype(blocks.v.dtype), blocks.v[j], **FLOAT32)
        new = larger, total * fading + jnp.sum(weights, axis=-1), sums * fading[..., None] + added
        return tuple(_put(x, one, i) for x, one in zip(state, new, strict=True)), None

    begun = jnp.full(each, LEAST), jnp.zeros(each), jnp.zeros((*each, width))
    (most, total, sums), _ = lax.scan(step, begun, jnp.asarray(how.pairs(count)))
    out = _joined(jnp.moveaxis(sums / total[..., None], 4, 2)).astype(blocks.v.dtype)
    out, logarithm = (checkpoint_name(x, KEPT) for x in (out, most + jnp.log(total)))
    return out, (*arrays, out, logarithm)


def _backward(how: How, kept: Any, cotangent: Array) -> tuple[Array | None, ...]:
    *arrays, out, logarithm = kept
    blocks, do = Blocks(*(_cut(how, x) for x in arrays)), _cut(how, cotangent)
    mean = _cut(how, jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1))
    mean = jnp.moveaxis(mean, 2, 4)

    def step(state: tuple[Array, ...], pair: Array) -> tuple[tuple[Array, ...], None]:
        i, j = pair
        dq, dk, dv = state
        scores, pull = blocks.scores(how, i, j)
        weights = jnp.exp(scores - logarithm[i][..., None])
        dweights = jnp.einsum("bskgh,btkh->bkgst", do[i], blocks.v[j], **FLOAT32)
        (dproducts,) = pull(weights * (dweights - mean[i][..., None]))
        weights, dproducts = weights.astype(do.dtype), dproducts.astype(do.dtype)
        dq = _put(dq, dq[i] + jnp.einsum("bkgst,btkh->bskgh", dproducts, blocks.k[j], **FLOAT32), i)
        dk = _put(dk, dk[j] + jnp.einsum("bkgst,bskgh->btkh", dproducts, blocks.q[i], **FLOAT32), j)
        dv = _put(dv, dv[j] + jnp.einsum("bkgst,bskgh->btkh", weights, do[i], **FLOAT32), j)
        return (dq, dk, dv), None

    begun = tuple(jnp.zeros(x.shape) for x in (blocks.q, blocks.k, blocks.v))
    found, _ = lax.scan(step, begun, jnp.asarray(how.pairs(len(blocks.q))))
    dq, dk, dv = (_joined(x).astype(own.dtype) for x, own in zip(found, arrays, strict=False))
    return dq, dk, dv, None, None


attend.defvjp(_forward, _backward)


def _cut(how: How, x: Array) -> Array:
    """`[b s ...]` in blocks `[c b t ...]`."""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, how.block, *x.shape[2:]), 0, 1)


def _joined(x: Array) -> Array:
    """Blocks `[c b t ...]` as rows again."""
    return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def _put(x: Array, one: Array, i: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, one, i, 0)
