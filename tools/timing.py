# SPDX-License-Identifier: Apache-2.0
"""How long an operation takes on this device, its inputs in memory and not in a cache; and what the device can do."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import op_times

CACHED = 120 * 2**20
"""Bytes that no device's caches hold: inputs take turns until they are so many."""


def seconds(call: Callable[..., Any], sets: list[tuple[Any, ...]], repeats: int = 5, calls: int = 4) -> float:
    """The median time of one call, over sets of arguments that take turns inside one program. On a GPU it is how long
    its kernels run on average, by the device's trace: a host launches small ones more slowly than they run, which
    within a longer program is hidden."""

    @jax.jit
    def turns(sets: list[tuple[Any, ...]]) -> list[Any]:
        return [call(*arrays) for arrays in sets]

    jax.block_until_ready(turns(sets))
    if jax.default_backend() == "gpu":
        with op_times.traced() as found:
            for _ in range(calls):
                jax.block_until_ready(turns(sets))
        return found.busy / 1e9 / calls / len(sets)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for _ in range(calls):
            done = turns(sets)
        jax.block_until_ready(done)
        times.append((time.perf_counter() - begun) / calls / len(sets))
    return statistics.median(times)


def sets_of(make: Callable[[Any], tuple[Any, ...]], size: float, most: int = 24) -> list[tuple[Any, ...]]:
    """As many sets of arguments, drawn differently, as keep a cache from helping."""
    count = min(most, max(1, -(-CACHED // max(int(size), 1))))
    made = jax.jit(make)
    return [jax.block_until_ready(made(jax.random.key(i))) for i in range(count)]


def ceilings() -> tuple[float, float]:
    """Bytes a second that a large copy reads and writes, and operations a second of a large product in bf16."""
    x = jnp.ones(2**28, jnp.float32)
    copied = seconds(lambda x: x + 1, [(x,)])
    w = jax.random.normal(jax.random.key(0), (8192, 8192)).astype(jnp.bfloat16)
    multiplied = seconds(lambda w: w @ w, [(w,)])
    return 2 * x.nbytes / copied, 2 * 8192**3 / multiplied
