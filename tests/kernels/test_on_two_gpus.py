# SPDX-License-Identifier: Apache-2.0
"""Hopper's kernels on a mesh of two GPUs: each has its own rows, or heads, and all together give what one alone does.
(Low-rank products: `test_pipeline`.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta
from jaxpost.kernels.attention import attention
from jaxpost.kernels.decode_attention import decode_attention
from jaxpost.kernels.decode_attention.shapes import Shape
from jaxpost.kernels.dispatch import forced
from jaxpost.params import ParamSpec, constant
from jaxpost.quant import Int4, Int8, Nf4, quantise
from jaxpost.shard import MeshShape, make_mesh
from tests.kernels.attention.test_splash import inputs, rows_of, values_and_gradients
from tests.kernels.decode_attention.test_decode_attention import inputs as cached_inputs

HERE = jax.device_count() if jax.default_backend() == "gpu" else 0
pytestmark = pytest.mark.skipif(HERE < 2, reason=f"pallas_gpu on two GPUs: there are {HERE} here")


def on_two(axis: str):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, axis: 2}
    return jax.set_mesh(make_mesh(MeshShape(**sizes), jax.devices()[:2]))


def check_the_same(axis, call):
    """To the bit, and on both."""
    alone = call()
    with on_two(axis):
        spread = call()
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(one.astype(np.float32), other.astype(np.float32))
        assert len(other.sharding.device_set) == 2


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_attention_pallas_gpu(axis):
    rows = rows_of([[100, 28], [60, 50]])
    given = inputs(rows, dtype=jnp.bfloat16)
    attend = functools.partial(attention, rows=rows, impl="pallas_gpu")
    check_the_same(axis, lambda: values_and_gradients(attend, rows, *given))


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
@pytest.mark.parametrize("kv", ["model", "int8"])
def test_decode_attention_pallas_gpu(axis, kv):
    given = cached_inputs(Shape(2, 8, 2, 64, 128), kv, [0, 100], [128, 60], jnp.bfloat16)
    check_the_same(axis, lambda: jax.jit(functools.partial(decode_attention, impl="pallas_gpu"))(*given))


@pytest.mark.parametrize("axis", ["data", "fsdp"])
@pytest.mark.parametrize("format", [Int8(), Int4(), Nf4()])
def test_quant_matmul_pallas_gpu(axis, format):
    spec = ParamSpec((512, 256), ": d : f", constant(0))
    w = quantise(jax.random.normal(jax.random.key(0), spec.shape), spec, format)
    x = jax.random.normal(jax.random.key(1), (4, 3, 512)).astype(jnp.bfloat16)
    with forced(quant_matmul="pallas_gpu"):
        check_the_same(axis, lambda: jax.jit(lambda x, w: delta.einsum("bsd,df->bsf", x, w))(x, w))
