# SPDX-License-Identifier: Apache-2.0
"""What is read from the text of a program compiled for TPUs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.faults import Fault
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.shard.aot import topology
from tools import compiled


def text_of(layers: int) -> str:
    try:
        mesh = make_mesh(MeshShape(), topology("v5e:2x2"))
    except Fault as why:
        pytest.skip(f"programs for TPUs: {why}")
    cut, whole = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((256, 512), jnp.bfloat16, sharding=whole)
        w = jax.ShapeDtypeStruct((layers, 512, 512), jnp.bfloat16, sharding=cut)

        def layer(x, w):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), whole), None

        return jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0]).lower(x, w).compile().as_text()


def test_loops_count_as_often_as_they_run():
    few, many = (compiled.read(text_of(layers)) for layers in (8, 24))
    assert few.open_loops == many.open_loops == 0
    assert 2 < many.cycles / few.cycles < 4
    moved = [sum(size for _, size in said.collectives.values()) for said in (few, many)]
    assert 2 < moved[1] / moved[0] < 4
    assert not few.kernels


def test_what_a_line_says():
    text = """HloModule m
%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %run.3 = f32[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", metadata={op_name="k"}
  %more = f32[8,128]{1,0} fusion(%a), calls=%inner, metadata={op_name="f"}, backend_config={"estimated_cycles":"10"}
}
%inner (p: f32[8,128]) -> f32[8,128] {
  %within = f32[8,128]{1,0} add(%a, %b), backend_config={"estimated_cycles":"99"}
  %sum = f32[8,128]{1,0} all-reduce(%a), channel_id=4
}
%condition (p: (s32[], f32[8,128])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %five), direction=LT
}
ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %loop = (s32[], f32[8,128]) while(%t), condition=%condition, body=%body
}
"""
    said = compiled.read(text)
    assert said.cycles == 50 and said.by_name == {"f": 50}, "what is fused has its cycles at the fusion"
    assert said.kernels == {"run": 5}
    assert said.collectives == {"all-reduce": [5, 5 * 8 * 128 * 4 / 2**20]}
