# SPDX-License-Identifier: Apache-2.0
"""Kernels for Hopper on a CPU: Pallas' interpreter runs their copies, barriers and loops, and looks for races. What it
does not know, matrix units with sums in registers, is said here in plain jnp."""

import contextlib
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

NEEDED = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="pallas_gpu: interpreting it needs jax 0.11")


class Sums:
    """An accumulator."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, index):
        return self.value[index]


class Instead:
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **names: Any):
        self.module, self.names = module, names

    def __getattr__(self, name: str) -> Any:
        return self.names[name] if name in self.names else getattr(self.module, name)


def wgmma(sums, a, b):
    from jax.experimental.pallas import mosaic_gpu

    a, b = (x if isinstance(x, jax.Array) else x[...] for x in (a, b))
    sums.value += jnp.dot(a.astype(sums.value.dtype), b.astype(sums.value.dtype), precision="highest")
    mosaic_gpu.commit_smem()  # matrix units read as copies do, without the fence that other readers need before one


def run_state(function):
    def run(begun):
        sums = jax.tree.map(Sums, begun)
        function(sums)
        return jax.tree.map(lambda each: each.value, sums, is_leaf=lambda each: isinstance(each, Sums))

    return run


def run_scoped(function, *like):
    return function(*(Sums(jnp.zeros(each.shape, each.dtype)) for each in like))


class Accumulator:
    def __call__(self, shape, dtype):
        return SimpleNamespace(shape=shape, dtype=dtype)

    def init(self, sums):
        return sums


@contextlib.contextmanager
def interpreting(monkeypatch: pytest.MonkeyPatch, *bodies: ModuleType) -> Iterator[None]:
    """The kernels of these modules are interpreted inside; fails if they race."""
    if jax.default_backend() != "cpu":
        pytest.skip("pallas_gpu: it is interpreted on CPUs")
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
    from jax.experimental.pallas import mosaic_gpu

    looked: list[Any] = []

    def state(*args: Any, of: Any = gpu_callbacks.GPURaceDetectionState, **kwargs: Any) -> Any:
        looked.append(of(*args, **kwargs))
        return looked[-1]

    # Each kernel begins with a state of its own: what those before the last one found would be forgotten.
    monkeypatch.setattr(gpu_callbacks, "GPURaceDetectionState", state)
    for body in bodies:
        monkeypatch.setattr(body, "plgpu", Instead(body.plgpu, wgmma=wgmma, ACC=Accumulator()))
        monkeypatch.setattr(body, "pl", Instead(body.pl, run_state=run_state, run_scoped=run_scoped))
    parameters: Any = mosaic_gpu.InterpretGPUParams(detect_races=True)  # pyright: ignore[reportAttributeAccessIssue]
    with mosaic_gpu.force_gpu_interpret_mode(parameters):  # pyright: ignore[reportAttributeAccessIssue]
        yield
    assert looked and not any(each.races_found for each in looked)
