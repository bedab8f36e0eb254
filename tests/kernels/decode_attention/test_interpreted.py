# SPDX-License-Identifier: Apache-2.0
"""The kernel for Hopper on a CPU: Pallas' interpreter runs its copies, barriers and loops, and looks for races. What it
does not know, matrix units with sums in registers and a few words of assembler, is said here in plain jnp."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.kernels.decode_attention import pallas_gpu
from jaxpost.kernels.decode_attention.shapes import Shape
from tests.kernels.decode_attention.test_decode_attention import TOLERANCE, inputs, oracle

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="pallas_gpu: interpreting it needs jax 0.11")


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
    a, b = (x if isinstance(x, jax.Array) else x[...] for x in (a, b))
    sums.value += jnp.dot(a.astype(sums.value.dtype), b.astype(sums.value.dtype), precision="highest")


def run_state(function):
    def run(begun):
        sums = Sums(begun)
        function(sums)
        return sums.value

    return run


class Accumulator:
    def __call__(self, shape, dtype):
        return SimpleNamespace(shape=shape, dtype=dtype)

    def init(self, sums):
        return sums


@pytest.fixture
def interpreter(monkeypatch):
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
    from jax.experimental.pallas import mosaic_gpu

    from jaxpost.kernels.decode_attention import pallas_gpu_body as body

    plain = Instead(body.plgpu, wgmma=wgmma, ACC=Accumulator())
    monkeypatch.setattr(body, "plgpu", plain)
    scoped = Instead(
        body.pl, run_state=run_state, run_scoped=lambda f, like: f(Sums(jnp.zeros(like.shape, like.dtype)))
    )
    monkeypatch.setattr(body, "pl", scoped)
    monkeypatch.setattr(body, "_rounded", jnp.round)  # on a CPU XLA takes the two sums that round for none
    monkeypatch.setattr(body, "_halves", lambda codes, layout: codes[...].astype(jnp.float16))
    parameters: Any = mosaic_gpu.InterpretGPUParams(detect_races=True)  # pyright: ignore[reportAttributeAccessIssue]
    with mosaic_gpu.force_gpu_interpret_mode(parameters):  # pyright: ignore[reportAttributeAccessIssue]
        yield
    assert not interpret_pallas_call.get_races().races_found


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    "shape, kv",
    [
        (Shape(2, 8, 2, 64, 256), "model"),
        (Shape(2, 8, 2, 128, 200, window=150, cap=20.0), "int8"),
        (Shape(2, 8, 2, 64, 192), "int8"),
        (Shape(2, 8, 1, 128, 192), "fp8"),
        (Shape(2, 20, 2, 256, 128), "model"),
    ],
)
def test_values(interpreter, shape, kv, splits):
    given = inputs(shape, kv, [3, shape.places - 50], [shape.places, 100], jnp.bfloat16)
    tiling = pallas_gpu.Tiling(places=64, stages=2, splits=splits)
    found = pallas_gpu.attend(*given, shape.window, 0.1, shape.cap, tiling).astype(jnp.float32)
    wanted = oracle(*given, window=shape.window, scale=0.1, cap=shape.cap)
    np.testing.assert_allclose(np.asarray(found), wanted, atol=TOLERANCE["pallas_gpu"])
