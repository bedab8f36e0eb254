# SPDX-License-Identifier: Apache-2.0
"""What formats of four bits share: two codes a byte, and numbers that hold for a stretch of the in axes.

`outer` is how many out axes stand last; what stands before the in axes is nobody's business here, so that a layer scan
may strip it.
"""

import math

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array


def pack(codes: Array, outer: int) -> Array:
    """Two codes of four bits a byte along the last in axis, the first in the high half: uint8.

    Where that axis is of odd size each code keeps a byte: int8. No trained model has such an axis, and the type tells
    the two apart, so that no shape need be kept.
    """
    axis = codes.ndim - outer - 1
    if codes.shape[axis] % 2:
        return codes.astype(jnp.int8)
    pairs = codes.astype(jnp.uint8).reshape(*codes.shape[:axis], -1, 2, *codes.shape[axis + 1 :])
    first, second = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return (first << 4) | second


def unpack(codes: Array, outer: int) -> Array:
    """The inverse of `pack`, as uint8."""
    if codes.dtype == jnp.int8:
        return codes.astype(jnp.uint8)
    axis = codes.ndim - outer
    pairs = jnp.stack([codes >> 4, codes & 15], axis)
    return pairs.reshape(*codes.shape[: axis - 1], -1, *codes.shape[axis:])


def blocked(w: Array, inner: int, outer: int, size: int) -> Array:
    """`[lead, in..., out...]` as `[lead, blocks, size, out...]`: the in axes as one, in stretches of `size`, the last
    one filled up with zeros."""
    lead, ins, outs = w.shape[: -inner - outer], w.shape[-inner - outer : w.ndim - outer], w.shape[w.ndim - outer :]
    flat = w.reshape(*lead, -1, *outs)
    spare = [(0, 0)] * flat.ndim
    spare[len(lead)] = (0, -math.prod(ins) % size)
    return jnp.pad(flat, spare).reshape(*lead, -1, size, *outs)


def unblocked(blocks: Array, shape: tuple[int, ...], inner: int, outer: int) -> Array:
    """The inverse of `blocked`, for a weight of that shape."""
    axis = len(shape) - inner - outer
    flat = blocks.reshape(*blocks.shape[:axis], -1, *blocks.shape[axis + 2 :])
    return jax.lax.slice_in_dim(flat, 0, math.prod(shape[axis : axis + inner]), axis=axis).reshape(shape)


def spread(numbers: Array, shape: tuple[int, ...], outer: int, size: int) -> Array:
    """`[lead, blocks, out...]` repeated over the numbers of each block, in a weight's shape."""
    axis = numbers.ndim - outer
    repeated = jnp.broadcast_to(jnp.expand_dims(numbers, axis), (*numbers.shape[:axis], size, *numbers.shape[axis:]))
    return unblocked(repeated, shape, len(shape) - numbers.ndim + 1, outer)


def finer(codes: Array, scale: Array, outer: int, size: int, ways: int) -> tuple[Array, Array, int]:
    """Packed codes, the numbers of their blocks (of `size`; 0: all is one) and the blocks' size, such that the first in
    axis can be cut `ways` times between bytes and between blocks: codes are unpacked and blocks made smaller where that
    takes it."""
    packed, first = codes.dtype == jnp.uint8, scale.ndim - outer - 1
    axes = codes.shape[first : codes.ndim - outer]
    whole = math.prod(axes) * (1 + packed)
    if ways == 1 or axes[0] * (1 + (packed and len(axes) == 1)) % ways:
        return codes, scale, size  # nobody cuts it
    if axes[0] % ways:
        codes = unpack(codes, outer).astype(jnp.int8)
    block = math.gcd(size, whole // ways)
    parts = jnp.repeat(scale, (size or whole) // block, axis=first)
    return codes, jax.lax.slice_in_dim(parts, 0, whole // block, axis=first), block
