# SPDX-License-Identifier: Apache-2.0
"""The specs of quantised weights say what quantising makes, and lay it out on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params, quant, shard
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.models.presets import PRESETS
from jaxpost.params import ParamSpec

CONFIG = Decoder(vocab=32, d=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, biases=("q",))
SPECS = params.filled(decoder.specs(CONFIG))


@pytest.mark.parametrize("targets", [("layers/*",), ("q", "down"), ("head", "embed")])
def test_specs_say_what_quantising_makes(targets):
    made = jax.eval_shape(
        lambda key: quant.quantise_tree(params.init(SPECS, key), SPECS, quant.Int8(), targets), jax.random.key(0)
    )
    said = params.abstract(quant.quantise_specs(SPECS, quant.Int8(), targets))
    assert jax.tree.structure(made) == jax.tree.structure(said)
    assert jax.tree.leaves(made) == jax.tree.leaves(said)
    assert sum(leaf.dtype == "int8" for leaf in jax.tree.leaves(said)) == (7 if targets == ("layers/*",) else 2)


def test_codes_lie_where_the_weight_would_and_scales_drop_what_does_not_divide():
    mesh = shard.make_mesh(shard.MeshShape(data=1, fsdp=4, tensor=2))
    specs = quant.quantise_specs(SPECS, quant.Int8())
    plain, stored = shard.shardings(SPECS, mesh), shard.shardings(specs, mesh)
    up = stored["layers"]["mlp"]["up"]
    assert up.codes.spec == plain["layers"]["mlp"]["up"].spec == jax.P(None, "fsdp", "tensor")
    assert up.scales["scale"].spec == jax.P(None, None, "tensor")
    assert stored["layers"]["attn_norm"].spec == plain["layers"]["attn_norm"].spec


@pytest.mark.parametrize("ends, most", [(False, 0.36), (True, 1 / 3)])
def test_an_8b_model_in_four_bits_takes_a_third(ends, most):
    """Of its 15 GiB in bfloat16; embedding and head, a seventh of them, in eight bits or as they are."""
    whole = params.filled(decoder.specs(PRESETS["llama-8b"]))
    stored = quant.quantise_specs(whole, quant.Nf4())
    stored = quant.quantise_specs(stored, quant.Int8(), quant.ENDS) if ends else stored
    sizes = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params.abstract(s))) for s in (whole, stored)]
    assert sizes[0] / 2**30 == pytest.approx(14.958, abs=1e-3)
    assert most - 0.05 < sizes[1] / sizes[0] < most


def test_rows_of_a_table_in_eight_bits_are_decoded_alone():
    table = jax.random.normal(jax.random.key(0), (11, 4))
    q = quant.quantise(table, ParamSpec((11, 4), ": v : d", params.normal(1.0)), quant.Int8())
    ids = jnp.array([[3, 0, 10], [3, 3, 1]])
    np.testing.assert_array_equal(delta.take(q, ids), quant.dequantise(q)[ids])
    program = str(jax.make_jaxpr(lambda q: delta.take(q, ids))(q))
    assert "f32[11,4]" not in program
