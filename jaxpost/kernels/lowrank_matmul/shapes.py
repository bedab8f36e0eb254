# SPDX-License-Identifier: Apache-2.0
"""Shapes of real use: tests scale them down, tuning and benchmarks take them as they are."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Tokens, in, out, rank."""

    t: int
    i: int
    o: int
    r: int


SHAPES = {
    "1b attention": Shape(8192, 2048, 2048, 16),
    "8b attention": Shape(8192, 4096, 4096, 16),
    "8b up": Shape(8192, 4096, 14336, 16),
    "1b up, rank 64": Shape(16384, 2048, 8192, 64),
    "1b query": Shape(16384, 2048, 2048, 16),
    "1b key": Shape(16384, 2048, 512, 16),
    "1b up": Shape(16384, 2048, 8192, 16),
    "1b down": Shape(16384, 8192, 2048, 16),
}
