# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864), and the ways to stretch it."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpost.arrays import Array, Float, Int


@dataclass(frozen=True)
class Linear:
    """All wavelengths times the factor (Chen et al. 2023, https://arxiv.org/abs/2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Dynamic:
    """A larger theta for examples longer than `original`, the more the longer they are (NTK-aware interpolation)."""

    factor: float
    original: int


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's: wavelengths over `original / low` times the factor, those under `original / high` as they are, in
    between mixed smoothly."""

    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071): pairs that turn fewer than `slow` times over
    `original` positions are stretched by the factor, those that turn more than `fast` times not at all, and the rest in
    between by their rank. `attention` scales what is turned; `truncate` rounds both borders outwards to whole pairs."""

    factor: float
    original: int
    attention: float = 1.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Long:
    """LongRoPE (Ding et al. 2024, https://arxiv.org/abs/2402.13753): a factor of its own for every pair, from `long`
    for examples of more than `original` positions and from `short` for others. `attention` scales what is turned."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    attention: float = 1.0


class Turns(NamedTuple):
    """Cosines and sines of the angle of every position and pair, `[b, s, pairs]` in float32."""

    cos: Array
    sin: Array


@dataclass(frozen=True)
class Rope:
    """Pair i of the first `fraction` of a head turns `theta^(-2i/size)` radians a position, or as `scaling` says."""

    theta: float = 10000.0
    scaling: Linear | Dynamic | Llama3 | Yarn | Long | None = None
    fraction: float = 1.0

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on how long an example is."""
        return isinstance(self.scaling, Dynamic | Long)

    def size(self, head_size: int) -> int:
        """How many numbers of a head are turned."""
        return int(head_size * self.fraction)

    def frequencies(self, head_size: int) -> np.ndarray:
        """Radians a position for each pair, in examples of no more than the original length."""
        size = self.size(head_size)
        plain = self.theta ** -(np.arange(0, size, 2) / size)
        match self.scaling:
            case Linear(factor):
                plain = plain / factor
            case Llama3(factor, low, high, original):
                turns = original * plain / (2 * math.pi)
                smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
                plain = plain * (smooth + (1 - smooth) / factor)
            case Yarn():
                stretched = self._ramp(self.scaling, size)
                plain = plain * (1 - stretched + stretched / self.scaling.factor)
            case Long(short):
                plain = plain / np.array(short)
        return plain.astype(np.float32)

    def _ramp(self, yarn: Yarn, size: int) -> np.ndarray:
        """How far each pair is stretched, from 0 to 1."""

        def pair(turns: float) -> float:
            """The pair, as a real number, that turns so many times over the original length."""
            return size * math.log(yarn.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        first, last = pair(yarn.fast), pair(yarn.slow)
        if yarn.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, size - 1)
        return np.clip((np.arange(size // 2) - first) / max(last - first, 0.001), 0.0, 1.0)

    def turns(self, positions: Int[Array, "b s"], lengths: Int[Array, "b s"] | None, head_size: int) -> Turns:
        """The angles of these positions. `lengths` says of every token how long its example is, and is only needed if
        the frequencies depend on it (`by_length`)."""
        frequencies = jnp.asarray(self.frequencies(head_size))[None, None]
        if lengths is not None:
            frequencies = self._stretched(frequencies, lengths.astype(jnp.float32)[..., None], head_size)
        angles = positions[..., None].astype(jnp.float32) * frequencies
        attention = getattr(self.scaling, "attention", 1.0)
        return Turns(jnp.cos(angles) * attention, jnp.sin(angles) * attention)

    def _stretched(self, frequencies: Array, lengths: Array, head_size: int) -> Array:
        size = self.size(head_size)
        match self.scaling:
            case Dynamic(factor, original):
                longer = factor * jnp.maximum(lengths, original) / original - (factor - 1)
                return frequencies * longer ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / (size - 2))[None, None]
            case Long(short, long, original):
                relative = jnp.asarray(np.array(short) / np.array(long), jnp.float32)[None, None]
                return jnp.where(lengths > original, frequencies * relative, frequencies)
        return frequencies


def rotate(x: Float[Array, "b s n h"], turns: Turns) -> Float[Array, "b s n h"]:
    """Each pair (i, i + size/2) turned by its angle: the halves convention of checkpoints on the Hugging Face hub, not
    the interleaved one of Llama's original release. What lies behind the turned part of a head passes."""
    pairs = turns.cos.shape[-1]
    cos, sin = turns.cos[:, :, None, :], turns.sin[:, :, None, :]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :pairs], wide[..., pairs : 2 * pairs], wide[..., 2 * pairs :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)
