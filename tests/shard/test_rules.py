# SPDX-License-Identifier: Apache-2.0
"""From letters to places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxpost import shard
from jaxpost.delta import Lora, Scales
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder, specs
from jaxpost.params import ParamSpec, constant

MESH = shard.make_mesh(shard.MeshShape(2, 2, 2))


def spec(shape, dims, derived=False) -> ParamSpec:
    return ParamSpec(shape, dims, constant(0.0), derived=derived)


def place(shape, dims, derived=False, rules=shard.RULES) -> P:
    return shard.shardings({"w": spec(shape, dims, derived)}, MESH, rules)["w"].spec


def test_weights_rest_cut_along_fsdp_and_tensor():
    assert place((3, 4, 2, 5), "l : d : n h") == P(None, "fsdp", "tensor", None)
    assert place((3, 2, 5, 4), "l : n h : d") == P(None, "tensor", None, "fsdp")
    assert place((6, 4), ": v : d") == P("tensor", "fsdp")


@pytest.mark.parametrize("shape, text", [((3, 2), "axis d of size 3.*fsdp"), ((4, 3), "axis f of size 3.*tensor")])
def test_a_base_weight_that_does_not_divide_is_a_fault_with_its_name(shape, text):
    tree = {"layers": {"mlp": {"up": spec(shape, ": d : f")}}}
    with pytest.raises(Fault, match=f"layers/mlp/up: {text}"):
        shard.shardings(tree, MESH)


def test_a_derived_array_drops_the_axis_that_does_not_divide():
    assert place((3, 2), ": d : f", derived=True) == P(None, "tensor")
    assert place((1, 4), ": d : f", derived=True) == P(None, "tensor")
    assert place((3, 3), ": d : f", derived=True) == P(None, None)


def test_two_axes_on_one_mesh_axis_are_refused():
    rules = shard.Rules(storage={"d": "fsdp", "f": "fsdp"})
    with pytest.raises(Fault, match="w: axes d and f are both laid on mesh axis fsdp"):
        place((4, 4), ": d : f", rules=rules)
    with pytest.raises(Fault, match="axes d and f are both"):
        place((4, 4), ": d : f", True, shard.Rules(storage={"d": ("data", "fsdp"), "f": "fsdp"}))
    assert place((4, 3), ": d : f", True, rules) == P("fsdp", None), "dropped first, it is in nobody's way"


def test_several_mesh_axes_for_one():
    rules = shard.Rules(storage={"d": ("data", "fsdp"), "f": "tensor"})
    assert place((8, 2), ": d : f", rules=rules) == P(("data", "fsdp"), "tensor")
    with pytest.raises(Fault, match="4 ways over mesh axis data\\+fsdp"):
        place((6, 2), ": d : f", rules=rules)


def test_mesh_axes_that_are_not_there_are_nobodys():
    mesh = jax.make_mesh((8,), ("fsdp",), (jax.sharding.AxisType.Auto,))
    placed = shard.shardings({"w": spec((16, 3), ": d : f")}, mesh)["w"].spec
    assert placed == P("fsdp", None)


def test_a_delta_is_laid_out_like_the_weights_it_edits():
    config = Decoder(vocab=14, d=8, layers=2, heads=4, kv_heads=2, head_size=4, ffn=12)
    lora = shard.shardings(Lora(rank=3, targets=("q", "o"))(specs(config)), MESH)
    assert lora["layers/attn/q"].a.spec == P(None, "fsdp", None)
    assert lora["layers/attn/q"].b.spec == P(None, None, "tensor", None)
    assert lora["layers/attn/q"].scale.spec == P(None)
    assert lora["layers/attn/o"].a.spec == P(None, "tensor", None, None)
    scales = shard.shardings(Scales(("k",))(specs(config)), MESH)
    assert scales["layers/attn/k"].s.spec == P(None, None, "tensor", None)


def test_a_whole_model_is_placed_and_a_mesh_too_wide_names_the_parameter():
    config = Decoder(vocab=16, d=8, layers=2, heads=4, kv_heads=2, head_size=4, ffn=12)
    assert len(jax.tree.leaves(shard.shardings(specs(config), MESH))) == len(jax.tree.leaves(specs(config)))
    with pytest.raises(Fault, match="layers/attn/k: axis k of size 2 cannot be cut 4 ways"):
        shard.shardings(specs(config), shard.make_mesh(shard.MeshShape(1, 2, 4)))


def test_rows_are_cut_over_data_and_fsdp():
    assert shard.rows(MESH).spec == P(("data", "fsdp"))


def constrained(x, letters):
    return jax.jit(lambda x: shard.constrain(x, letters))(x)


def test_constrain_lays_out_and_leaves_the_numbers_alone():
    x = jnp.arange(4 * 3 * 8.0).reshape(4, 3, 8)
    with jax.set_mesh(MESH):
        y = constrained(x, "b s f")
        assert y.sharding.spec == P(("data", "fsdp"), None, "tensor")
        z = constrained(x[:3], "b s f")
        assert z.sharding.spec == P(None, None, "tensor"), "three rows cannot be cut four ways"
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(x[:3], z)


def test_constrain_without_a_mesh_adds_nothing_to_the_program():
    x = jnp.ones((4, 3, 8))
    assert "sharding_constraint" not in str(jax.make_jaxpr(lambda x: shard.constrain(x, "b s f"))(x))
    with jax.set_mesh(MESH):
        assert "sharding_constraint" in str(jax.make_jaxpr(lambda x: shard.constrain(x, "b s f"))(x))
        assert "sharding_constraint" not in str(jax.make_jaxpr(lambda x: shard.constrain(x, ""))(x))


def test_what_each_device_computes_by_itself():
    """Cut along rows and along what is summed; axes that are neither come whole; everyone draws its own numbers."""
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32), jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    rules = shard.Rules(compute={"b": "data", "f": "tensor", "d": "fsdp"})
    seen = []

    def product(x, w, key):
        seen.append((x.shape, w.shape))
        return (x @ w) @ w.T + 0 * jax.random.normal(key, x.shape)

    def noise(x, w, key):
        return jax.random.normal(key, x.shape) + 0 * w.sum()

    def on_mesh(function):
        return shard.on_each(function, "b", ("f", 4), ("b d", "d f", ""), "b d", rules)

    with jax.set_mesh(shard.make_mesh(shard.MeshShape(2, 2, 2))):
        found = jax.jit(on_mesh(product))(x, w, jax.random.key(0))
        drawn = np.asarray(jax.jit(on_mesh(noise))(x, w, jax.random.key(0)))
    np.testing.assert_allclose(found, (x @ w) @ w.T, rtol=1e-4)
    assert seen[-1] == ((4, 3), (3, 2))
    assert np.abs(drawn[:4] - drawn[4:]).min() > 1e-4
    assert on_mesh(product) is product, "without a mesh"
