# SPDX-License-Identifier: Apache-2.0
"""Shapes that matter: what tests scale down, and what is tuned and measured."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """Rows, query heads, key/value heads, head size, places of the ring; window and cap where the model has them."""

    rows: int
    heads: int
    kv_heads: int
    size: int
    places: int
    window: int | None = None
    cap: float | None = None

    def scaled(self, heads: int = 2, places: int = 384) -> "Shape":
        """The same in small: three rows, fewer key/value heads and places, as many query heads to each."""
        kv_heads = min(self.kv_heads, heads)
        window = None if self.window is None else min(self.window, places // 3)
        group = self.heads // self.kv_heads
        return replace(self, rows=3, heads=kv_heads * group, kv_heads=kv_heads, places=places, window=window)


SHAPES: Mapping[str, Shape] = {
    "llama-8b": Shape(256, 32, 8, 128, 2048),
    "llama-8b, few rows": Shape(8, 32, 8, 128, 4096),
    "llama-1b": Shape(64, 32, 8, 64, 512),
    "qwen-4b": Shape(128, 32, 8, 128, 4096),
    "gemma2-9b, window": Shape(64, 16, 8, 256, 4096, window=4096, cap=50.0),
    "mistral-7b, window": Shape(64, 32, 8, 128, 4096, window=4096),
    "one key/value head": Shape(64, 8, 1, 256, 2048),
    "heads of their own": Shape(64, 16, 16, 64, 1024),
}
