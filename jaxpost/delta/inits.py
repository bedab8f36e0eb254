# SPDX-License-Identifier: Apache-2.0
"""Where the two factors of a low-rank update start.

Drawn ones need only their shapes. The others come from the weight: `(w, rank, scale) -> (a, b)` with w `[in, out]`, a
`[in, rank]` and b `[rank, out]`, where `scale * a @ b` is the part of w that is to be trained.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost.arrays import Array, Key
from jaxpost.delta.contract import Weight, dense
from jaxpost.delta.low_rank import LowRank
from jaxpost.params import Init

Start = Literal["gaussian", "kaiming", "pissa", "olora"]
Draw = Callable[[Key, tuple[int, ...]], Array]
FromWeight = Callable[[Array, int, Array], tuple[Array, Array]]


def columns(size: np.ndarray, draw: Draw = jax.random.normal) -> Init:
    """a's start: each column drawn, times its size of `[lead, rank]`, which is zero for padding."""
    return lambda key, shape, dtype: _sized(
        draw(key, shape), size.reshape(*size.shape[:-1], *(1,) * (len(shape) - size.ndim), size.shape[-1]), dtype
    )


def rows(size: np.ndarray, draw: Draw = jax.random.normal) -> Init:
    """b's start: each row drawn, times its size of `[lead, rank]`."""
    return lambda key, shape, dtype: _sized(
        draw(key, shape), size.reshape(*size.shape, *(1,) * (len(shape) - size.ndim)), dtype
    )


def each(values: Any) -> Init:
    """Given numbers."""
    return lambda key, shape, dtype: jnp.asarray(values, dtype)


def _sized(x: Array, size: np.ndarray, dtype: Any) -> Array:
    return (jnp.asarray(size, jnp.float32) * x).astype(dtype)


def uniform(key: Key, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def pissa(w: Array, rank: int, scale: Array) -> tuple[Array, Array]:
    """The principal singular values and vectors (Meng et al. 2024, https://arxiv.org/abs/2404.02948)."""
    u, s, v = jnp.linalg.svd(w, full_matrices=False)
    root = jnp.sqrt(s[:rank] / scale)
    return u[:, :rank] * root[None], root[:, None] * v[:rank]


def olora(w: Array, rank: int, scale: Array) -> tuple[Array, Array]:
    """Orthonormal b and the rows of R that go with it, of the QR decomposition of w^T (Buyukakyuz 2024,
    https://arxiv.org/abs/2406.01775). As in PEFT the product is not divided by the scale."""
    q, r = jnp.linalg.qr(w.T)
    return r[:rank].T, q[:, :rank].T


FROM_WEIGHT: Mapping[str, FromWeight] = {"pissa": pissa, "olora": olora}


def one_by_one(function: Callable[[Any], Any], lead: int) -> Callable[[Any], Any]:
    """The function of one weight made one of stacked weights, whose arrays have so many lead axes. It takes them one
    after the other, because what it does with each takes much room."""
    for _ in range(lead):
        function = functools.partial(jax.lax.map, function)
    return function


def decomposed(init: FromWeight, w: Weight, edit: LowRank) -> LowRank:
    """The edit with the factors of a weight, or of each of the stacked ones, as far as they are in use: padding, which
    both factors have as zeros, stays zero."""
    rank, out, lead = edit.a.shape[-1], math.prod(edit.b.shape[edit.scale.ndim + 1 :]), edit.scale.shape

    def factors(of: tuple[Weight, Array]) -> tuple[Array, Array]:
        return init(dense(of[0], jnp.float32).reshape(-1, out), rank, of[1])

    a, b = one_by_one(factors, len(lead))((w, edit.scale))
    used = jnp.any(edit.a.reshape(*lead, -1, rank) != 0, -2) | jnp.any(edit.b.reshape(*lead, rank, -1) != 0, -1)
    a, b = (a * used[..., None, :]).reshape(edit.a.shape), (b * used[..., None]).reshape(edit.b.shape)
    return edit.replace(a=a, b=b)  # pyright: ignore[reportAttributeAccessIssue]
