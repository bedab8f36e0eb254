# SPDX-License-Identifier: Apache-2.0
"""What is measured and tuned of each kernel operation: its named shapes as arrays, bytes and operations."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.data.batches.packing import MOST
from jaxpost.kernels import attention as attention_room
from jaxpost.kernels import decode_attention as decode_room
from jaxpost.kernels import lowrank_matmul as lowrank_room
from jaxpost.kernels import quant_matmul as quant_room
from jaxpost.kernels.attention import Rows
from jaxpost.kernels.attention import api as attention_api
from jaxpost.kernels.decode_attention import Cached, stored
from jaxpost.kernels.decode_attention import api as decode_api
from jaxpost.kernels.decode_attention.shapes import SHAPES as DECODED
from jaxpost.kernels.lowrank_matmul import api as lowrank_api
from jaxpost.kernels.lowrank_matmul.shapes import SHAPES as LOWRANK
from jaxpost.kernels.quant_matmul import api as quant_api
from jaxpost.kernels.quant_matmul.shapes import MATRICES, TOKENS
from jaxpost.quant import Int4, Int8, Nf4, QArray

FORMATS = {"int8": Int8(), "int4": Int4(), "nf4": Nf4()}


@dataclass(frozen=True)
class Case:
    """One shape of an operation: `make` draws its arrays from a key, `call` takes an implementation's name and them.
    `bytes` and `flops` are the least that any implementation reads and writes, and computes."""

    operation: str
    name: str
    make: Callable[[Any], tuple[Any, ...]]
    call: Callable[..., Any]
    bytes: float
    flops: float
    implementations: Mapping[str, Any]


def drawn(key: Any, *shapes: tuple[int, ...], scale: float = 1.0) -> list[Any]:
    keys = jax.random.split(key, len(shapes))
    return [
        (scale * jax.random.normal(key, shape)).astype(jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)
    ]


def decoding() -> Iterator[Case]:
    for (name, shape), kv in product(DECODED.items(), ("model", "int8", "fp8")):
        b, n, k, t, h = shape.rows, shape.heads, shape.kv_heads, shape.places, shape.size

        def make(key: Any, shape: Any = shape, kv: Any = kv, sizes: Any = (b, n, k, t, h)) -> tuple[Any, ...]:
            b, n, k, t, h = sizes
            q, new_k, new_v, old_k, old_v = drawn(key, (b, 1, n, h), (b, 1, k, h), (b, 1, k, h), *[(1, b, k, t, h)] * 2)
            entries = stored(old_k, old_v, kv)
            start = jax.random.randint(key, (b,), 0, t, jnp.int32)
            return q, new_k, new_v, Cached.of(entries, start, jnp.full(b, t, jnp.int32))

        def call(impl: Any, *arrays: Any, shape: Any = shape) -> Any:
            return decode_room.decode_attention(*arrays, window=shape.window, cap=shape.cap, impl=impl)

        entry = decode_room.bytes_per_entry(kv, h, jnp.bfloat16)
        seen = t if shape.window is None else min(t, shape.window - 1)
        yield Case(
            "decode_attention", f"{name}, {kv}", make, call, 2 * b * k * seen * entry, 4 * b * n * seen * h,
            decode_api.IMPLEMENTATIONS,
        )  # fmt: skip


def quantised() -> Iterator[Case]:
    for (name, (i, o)), form, tokens in product(MATRICES.items(), FORMATS, TOKENS):

        def make(key: Any, form: str = form, sizes: Any = (tokens, i, o)) -> tuple[Any, ...]:
            tokens, i, o = sizes
            x, w = drawn(key, (tokens, i), (i, o))
            return x, QArray(*FORMATS[form].encode(w.astype(jnp.float32) * i**-0.5, 1, 1), FORMATS[form])

        def call(impl: Any, *arrays: Any) -> Any:
            return quant_room.quant_matmul(*arrays, impl=impl)

        bits = {"int8": 8, "int4": 4.5, "nf4": 4.13}[form]
        yield Case(
            "quant_matmul", f"{name}, {form}, {tokens} tokens", make, call,
            i * o * bits / 8 + 2 * tokens * (i + o), 2 * tokens * i * o, quant_api.IMPLEMENTATIONS,
        )  # fmt: skip


def lowrank() -> Iterator[Case]:
    for name, (t, i, o, r) in LOWRANK.items():

        def make(key: Any, sizes: Any = (t, i, o, r)) -> tuple[Any, ...]:
            t, i, o, r = sizes
            x, w, a, b, dy = drawn(key, (t, i), (i, o), (i, r), (r, o), (t, o))
            return x, w * i**-0.5, (a * i**-0.5).astype(jnp.float32), b.astype(jnp.float32), dy

        def call(impl: Any, x: Any, w: Any, a: Any, b: Any, dy: Any) -> Any:
            """Forwards and backwards, with no gradient of w."""
            y, pull = jax.vjp(lambda x, a, b: lowrank_room.lowrank_matmul(x, w, a, b, impl=impl), x, a, b)
            return y, pull(dy)

        yield Case(
            "lowrank_matmul", f"{name}: {t} x {i} -> {o}, r {r}", make, call,
            2 * (2 * t * (i + o) + 2 * i * o), 4 * t * i * o + 8 * t * r * (i + o), lowrank_api.IMPLEMENTATIONS,
        )  # fmt: skip


TRAINED = {
    "llama-1b": (8, 2048, 32, 8, 64, 1),
    "llama-1b, packed": (8, 2048, 32, 8, 64, 8),
    "llama-8b": (4, 4096, 32, 8, 128, 1),
    "llama-8b, packed": (4, 4096, 32, 8, 128, 8),
}
"""Rows, length, query heads, key/value heads, head size, examples in a row."""


def training() -> Iterator[Case]:
    for name, (b, s, n, k, h, segments) in TRAINED.items():
        place = jnp.arange(s, dtype=jnp.int32)
        size = s // segments
        most = 1 if segments == 1 else MOST  # what a recipe knows of packed rows
        rows = Rows(jnp.tile(place // size + 1, (b, 1)), jnp.tile(place % size, (b, 1)), most)

        def make(key: Any, sizes: Any = (b, s, n, k, h)) -> tuple[Any, ...]:
            b, s, n, k, h = sizes
            return tuple(drawn(key, (b, s, n, h), (b, s, k, h), (b, s, k, h), (b, s, n, h)))

        def call(impl: Any, q: Any, k: Any, v: Any, dy: Any, rows: Any = rows) -> Any:
            """Forwards and backwards."""
            y, pull = jax.vjp(lambda q, k, v: attention_room.attention(q, k, v, rows, impl=impl), q, k, v)
            return y, pull(dy)

        yield Case(
            "attention", name, make, call, 2 * b * s * h * (4 * n + 4 * k), 3.5 * 2 * b * s * size * n * h,
            attention_api.IMPLEMENTATIONS,
        )  # fmt: skip


OPERATIONS: Mapping[str, Callable[[], Iterator[Case]]] = {
    "attention": training,
    "decode_attention": decoding,
    "quant_matmul": quantised,
    "lowrank_matmul": lowrank,
}

GRIDS: Mapping[tuple[str, str], Mapping[str, Sequence[Any]]] = {
    ("decode_attention", "pallas_gpu"): {"places": (64, 128, 256), "stages": (2, 3, 4), "splits": (0, 1, 2, 4)},
    ("decode_attention", "pallas_tpu"): {"block": (256, 512, 1024, 2048)},
    ("quant_matmul", "pallas_gpu"): {"groups": (1, 2), "blocks": (1, 2, 4, 8), "rows": (64, 128), "steps": (3, 5, 8)},
    ("lowrank_matmul", "pallas_gpu"): {"width": (4, 8, 16), "stages": (2, 3, 4), "out": (64, 128, 256)},
    ("lowrank_matmul", "pallas_tpu"): {"rows": (512, 1024, 2048), "columns": (512, 1024, 2048), "depth": (512, 1024)},
    ("attention", "pallas_gpu"): {"keys": (64, 128), "stages": (2, 3), "stages_dq": (2, 3), "stages_dkv": (2, 3)},
    ("attention", "splash"): {"q": (512, 1024), "kv": (512, 1024, 2048), "q_dkv": (512, 1024), "kv_dkv": (1024, 2048)},
}
"""What is tried of each implementation's tunables."""


@functools.cache
def cases(operation: str) -> tuple[Case, ...]:
    return tuple(OPERATIONS[operation]())


def grid(operation: str, implementation: str) -> Iterator[dict[str, Any]]:
    values = GRIDS.get((operation, implementation), {})
    for chosen in product(*values.values()):
        yield dict(zip(values, chosen, strict=True))
