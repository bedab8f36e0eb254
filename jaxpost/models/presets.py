# SPDX-License-Identifier: Apache-2.0
"""Decoders by name: real sizes, for benchmarks and plans that need no weights."""

from typing import Any

from jaxpost.models.architecture import Decoder, Experts, Layer
from jaxpost.models.rope import Linear, Llama3, Rope


def _gemma(d: int, **own: Any) -> Decoder:
    """With what all Gemmas share."""
    of: dict[str, Any] = {"vocab": 256000, "d": d, "embed_scale": d**0.5, "head_size": 256, "tied": True}
    of |= {"norm": "offset", "norm_eps": 1e-6, "activation": "gelu_tanh", "dtype": "bfloat16"}
    return Decoder(**of | own)


def _near(window: int) -> tuple[Layer, ...]:
    """Gemma 3's layers: five that see a window, and turn faster, to one that sees all."""
    return (*(Layer(window, Rope(10_000.0)),) * 5, Layer())


_LLAMA3: dict[str, Any] = {"vocab": 128256, "max_length": 131072, "dtype": "bfloat16", "family": "llama"}
_QWEN: dict[str, Any] = {"rope": Rope(1e6), "norm_eps": 1e-6, "dtype": "bfloat16"}
_QWEN2: dict[str, Any] = {**_QWEN, "biases": ("q", "k", "v"), "family": "qwen2"}
_QWEN3: dict[str, Any] = {**_QWEN, "qk_norm": True, "max_length": 40960}
_GEMMA2: dict[str, Any] = {"post_norms": True, "attn_cap": 50.0, "logit_cap": 30.0, "family": "gemma2"}
_GEMMA2 |= {"pattern": (Layer(4096), Layer()), "max_length": 8192}
_GEMMA3: dict[str, Any] = {"post_norms": True, "qk_norm": True, "family": "gemma3_text"}

PRESETS = {
    "llama-2-7b": Decoder(
        vocab=32000, d=4096, layers=32, heads=32, kv_heads=32, head_size=128, ffn=11008,
        max_length=4096, dtype="float16", family="llama",
    ),
    "llama-1b": Decoder(
        d=2048, layers=16, heads=32, kv_heads=8, head_size=64, ffn=8192,
        rope=Rope(500_000.0, Llama3(32.0)), tied=True, **_LLAMA3,
    ),
    "llama-8b": Decoder(
        d=4096, layers=32, heads=32, kv_heads=8, head_size=128, ffn=14336,
        rope=Rope(500_000.0, Llama3(8.0)), **_LLAMA3,
    ),
    "mistral-7b": Decoder(
        vocab=32000, d=4096, layers=32, heads=32, kv_heads=8, head_size=128, ffn=14336,
        pattern=(Layer(4096),), max_length=32768, dtype="bfloat16", family="mistral",
    ),
    "qwen2.5-0.5b": Decoder(
        vocab=151936, d=896, layers=24, heads=14, kv_heads=2, head_size=64, ffn=4864,
        tied=True, max_length=32768, **_QWEN2,
    ),
    "qwen2.5-7b": Decoder(
        vocab=152064, d=3584, layers=28, heads=28, kv_heads=4, head_size=128, ffn=18944,
        max_length=131072, **_QWEN2,
    ),
    "qwen3-0.6b": Decoder(
        vocab=151936, d=1024, layers=28, heads=16, kv_heads=8, head_size=128, ffn=3072,
        tied=True, family="qwen3", **_QWEN3,
    ),
    "qwen3-8b": Decoder(
        vocab=151936, d=4096, layers=36, heads=32, kv_heads=8, head_size=128, ffn=12288,
        family="qwen3", **_QWEN3,
    ),
    "qwen3-30b-a3b": Decoder(
        vocab=151936, d=2048, layers=48, heads=32, kv_heads=4, head_size=128, ffn=6144, experts=Experts(128, 8, 768),
        family="qwen3_moe", **_QWEN3,
    ),
    "gemma-2b": _gemma(2048, layers=18, heads=8, kv_heads=1, ffn=16384, max_length=8192, family="gemma"),
    "gemma-2-2b": _gemma(2304, layers=26, heads=8, kv_heads=4, ffn=9216, **_GEMMA2),
    "gemma-2-9b": _gemma(3584, layers=42, heads=16, kv_heads=8, ffn=14336, **_GEMMA2),
    "gemma-3-1b": _gemma(
        1152, vocab=262144, layers=26, heads=4, kv_heads=1, ffn=6912,
        rope=Rope(1e6), pattern=_near(512), max_length=32768, **_GEMMA3,
    ),
    "gemma-3-4b": _gemma(
        2560, vocab=262208, layers=34, heads=8, kv_heads=4, ffn=10240,
        rope=Rope(1e6, Linear(8.0)), pattern=_near(1024), max_length=131072, **_GEMMA3,
    ),
    "gpt2": Decoder(
        vocab=50257, d=768, layers=12, heads=12, kv_heads=12, head_size=64, ffn=3072,
        rope=None, norm="layer", tied=True, biases=("q", "k", "v", "o", "up", "down"), max_length=1024,
        activation="gelu_tanh", gated=False, family="gpt2",
    ),
    "phi-3-mini": Decoder(
        vocab=32064, d=3072, layers=32, heads=32, kv_heads=32, head_size=96, ffn=8192,
        pattern=(Layer(2047),), max_length=4096, dtype="bfloat16", family="phi3",
    ),
    "mixtral-8x7b": Decoder(
        vocab=32000, d=4096, layers=32, heads=32, kv_heads=8, head_size=128, ffn=14336,
        rope=Rope(1e6), experts=Experts(8, 2, 14336), max_length=32768, dtype="bfloat16", family="mixtral",
    ),
    "nano": Decoder(
        vocab=2048, d=256, layers=5, heads=8, kv_heads=4, head_size=32, ffn=576,
        tied=True, max_length=1024, dtype="bfloat16",
    ),
}  # fmt: skip
"""As published (Llama 3.2 1B, Llama 3.1 8B, Mistral v0.1, Phi-3 mini 4k; of Gemma 3 4B the text part), and the model
that ships with jaxpost."""
