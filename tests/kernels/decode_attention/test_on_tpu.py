# SPDX-License-Identifier: Apache-2.0
"""The kernel compiled for TPUs that are not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.faults import Fault
from jaxpost.kernels.decode_attention import Cached, decode_attention
from jaxpost.kernels.decode_attention.shapes import SHAPES, Shape
from jaxpost.shard.aot import topology

pytestmark = pytest.mark.usefixtures("uncached")
CODES = {"model": jnp.bfloat16, "int8": jnp.int8, "fp8": jnp.float8_e4m3fn}


@functools.cache
def devices(name: str):
    try:
        return topology(name)
    except Fault as why:
        pytest.skip(f"{name}: {why}")


def compiled(name: str, shape: Shape, kv: str, axes: tuple[str, ...] = ("fsdp",), sizes: tuple[int, ...] = (1,)):
    mesh = Mesh(
        np.array(devices(name)[: int(np.prod(sizes))]).reshape(sizes), axes, axis_types=(AxisType.Auto,) * len(sizes)
    )

    def array(letters: str, dtype):
        lengths = dict(b=shape.rows, n=shape.heads, k=shape.kv_heads, h=shape.size, t=shape.places, s=1, l=3)
        cut = {"b": "fsdp", "n": "tensor", "k": "tensor"}
        spec = P(*(cut.get(letter) if cut.get(letter) in axes else None for letter in letters.split()))
        sizes = tuple(lengths[letter] for letter in letters.split())
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    entries, scales = array("l b k t h", CODES[kv]), None if kv == "model" else array("l b k t", jnp.float32)
    rows, layer = array("b", jnp.int32), array("", jnp.int32)
    cached = Cached(entries, entries, rows, rows, scales, scales, layer)
    new = array("b s k h", jnp.bfloat16)
    run = functools.partial(decode_attention, window=shape.window, cap=shape.cap)
    with jax.set_mesh(mesh):
        return jax.jit(run).lower(array("b s n h", jnp.bfloat16), new, new, cached).compile()


EVERYWHERE = [("llama-8b", "int8"), ("llama-1b", "model"), ("gemma2-9b, window", "int8")]
OF_V5E = [(shape, kv) for shape in ("llama-8b", "llama-1b", "gemma2-9b, window") for kv in CODES]


@pytest.mark.parametrize(
    "name, shape, kv",
    [
        *(("v5e:2x2", *case) for case in OF_V5E),
        *((name, *case) for name in ("v5p:2x2x1", "v6e:2x2") for case in EVERYWHERE),
    ],
)
def test_it_compiles_and_copies_nothing_of_the_caches_size(name, shape, kv):
    program = compiled(name, SHAPES[shape].scaled(heads=8, places=1024), kv)
    assert "tpu_custom_call" in program.as_text()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 / 3 * memory.argument_size_in_bytes, "of a layer, of which there are three"


@pytest.mark.parametrize("places", [1000, 96])
def test_places_that_no_block_divides(places):
    assert "tpu_custom_call" in compiled("v5e:2x2", Shape(2, 24, 2, 128, places), "int8").as_text()
    assert "tpu_custom_call" in compiled("v5e:2x2", Shape(2, 24, 2, 64, places), "model").as_text()


def test_on_a_mesh_nothing_travels():
    text = compiled("v5e:2x2", Shape(4, 32, 8, 128, 1024), "int8", ("fsdp", "tensor"), (2, 2)).as_text()
    assert "tpu_custom_call" in text
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
