# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxpost.arrays import Array, Float, Int


@dataclass(frozen=True)
class Rope:
    """Frequencies `theta^(-2i/h)`. With a `factor` above 1 the long wavelengths are stretched as Llama 3.1 does:
    those over `original / low` by the factor, those under `original / high` not at all, smoothly in between."""

    theta: float = 10000.0
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def frequencies(self, size: int) -> np.ndarray:
        """Radians a position for each of the `size / 2` pairs."""
        plain = self.theta ** -(np.arange(0, size, 2) / size)
        if self.factor == 1.0:
            return plain.astype(np.float32)
        turns = self.original * plain / (2 * math.pi)
        smooth = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return (plain * (smooth + (1 - smooth) / self.factor)).astype(np.float32)


def rotate(x: Float[Array, "b s n h"], positions: Int[Array, "b s"], rope: Rope) -> Float[Array, "b s n h"]:
    """Each pair (i, i + h/2) turned by position times frequency: the halves convention of Llama checkpoints on the
    Hugging Face hub, not the interleaved one of the original release."""
    angles = positions[..., None].astype(jnp.float32) * rope.frequencies(x.shape[-1])[None, None]
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
