# SPDX-License-Identifier: Apache-2.0
"""The kernel for Hopper on a CPU, by Pallas' interpreter."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.kernels.decode_attention import pallas_gpu
from jaxpost.kernels.decode_attention.shapes import Shape
from tests.kernels.decode_attention.test_decode_attention import TOLERANCE, inputs, oracle
from tests.kernels.interpreter import NEEDED, interpreting

pytestmark = NEEDED


@pytest.fixture
def interpreter(monkeypatch):
    from jaxpost.kernels.decode_attention import pallas_gpu_body as body

    monkeypatch.setattr(body, "_rounded", jnp.round)  # on a CPU XLA takes the two sums that round for none
    monkeypatch.setattr(body, "_halves", lambda codes, layout: codes[...].astype(jnp.float16))
    with interpreting(monkeypatch, body):
        yield


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
