# SPDX-License-Identifier: Apache-2.0
"""Decoders by name: real sizes, for benchmarks and plans that need no weights."""

from jaxpost.models.decoder import Decoder
from jaxpost.models.rope import Rope

PRESETS = {
    "llama-1b": Decoder(
        vocab=128256, d=2048, layers=16, heads=32, kv_heads=8, head_size=64, ffn=8192,
        rope=Rope(500_000.0, factor=32.0), tied=True, max_length=131072, dtype="bfloat16",
    ),
    "llama-8b": Decoder(
        vocab=128256, d=4096, layers=32, heads=32, kv_heads=8, head_size=128, ffn=14336,
        rope=Rope(500_000.0, factor=8.0), tied=False, max_length=131072, dtype="bfloat16",
    ),
    "nano": Decoder(
        vocab=2048, d=256, layers=5, heads=8, kv_heads=4, head_size=32, ffn=576,
        tied=True, max_length=1024, dtype="bfloat16",
    ),
}  # fmt: skip
"""Llama 3.2 1B and Llama 3.1 8B as published, and the model that ships with jaxpost."""
