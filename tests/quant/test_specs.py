# SPDX-License-Identifier: Apache-2.0
"""The specs of quantised weights say what quantising makes, and lay it out on a mesh."""

import jax
import pytest

from jaxpost import params, quant, shard
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder

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
