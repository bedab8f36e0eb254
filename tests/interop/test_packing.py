# SPDX-License-Identifier: Apache-2.0
"""Weights quantised while they are read are those quantised afterwards."""

import jax
import numpy as np
import pytest

from jaxpost import params, quant, shard, trees
from jaxpost.interop import hf
from jaxpost.models.architecture import specs
from jaxpost.recipes.drawn import drawn
from tests.interop.golden import GOLDEN
from tests.laws.cases import wide

CASES = ["llama-two", "qwen3_moe-normed", "phi3"]
FORMATS = {"int8": quant.Int8(), "nf4": quant.Nf4(block=4)}


@pytest.mark.parametrize("case, name", [*((case, "nf4") for case in CASES), ("llama-two", "int8")])
def test_streaming_quantises_as_a_whole_tree_would_be(case, name):
    told: list[tuple[int, int]] = []
    config, streamed, stored = hf.stored(
        GOLDEN / case, format=FORMATS[name], report=lambda done, of: told.append((done, of))
    )
    whole = hf.load(GOLDEN / case)[1]
    flat = {path: leaf for path, leaf in trees.flatten(whole).items() if leaf is not None}
    form = trees.unflatten({path: trees.flatten(specs(config))[path] for path in flat})
    wanted = jax.jit(lambda whole: quant.quantise_tree(whole, form, FORMATS[name]))(trees.unflatten(flat))
    assert told[-1][0] == told[-1][1] and len(told) > 5
    assert jax.tree.structure(streamed) == jax.tree.structure(params.abstract(stored))
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(streamed), jax.tree.leaves(wanted), strict=True):
        where = trees.path_of(path)
        if one.dtype in (np.uint8, np.int8):  # a nearest code may be another where two are equally near
            assert np.mean(np.asarray(one) != np.asarray(other)) < 0.01, where
        else:
            np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=where)


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_streaming_onto_a_mesh(name):
    mesh = shard.make_mesh(shard.MeshShape(2, 2, 2))
    config, streamed, stored = hf.stored(
        GOLDEN / "llama-two", None, lambda specs: shard.shardings(specs, mesh), FORMATS[name]
    )
    alone = hf.stored(GOLDEN / "llama-two", format=FORMATS[name])[1]
    places = jax.tree.leaves(shard.shardings(stored, mesh))
    for one, other, place in zip(jax.tree.leaves(streamed), jax.tree.leaves(alone), places, strict=True):
        assert one.sharding == place
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=1e-6)


def test_drawn_weights_are_those_of_their_specs():
    config = hf.read_config(GOLDEN / "llama-two")
    whole = params.filled(specs(config))
    mesh, key = shard.make_mesh(shard.MeshShape()), jax.random.key(3)
    stored = quant.quantise_specs(whole, quant.Nf4(block=4))
    made = drawn(whole, stored, mesh, key)
    said = params.abstract(stored)
    assert jax.tree.structure(made) == jax.tree.structure(said)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(made)] == [(x.shape, x.dtype) for x in jax.tree.leaves(said)]
    np.testing.assert_allclose(wide(made["embed"]), wide(params.init(whole, key)["embed"]), atol=1e-3)
    up, exact = made["layers"]["mlp"]["up"], params.init(whole, key)["layers"]["mlp"]["up"]
    assert abs(float(np.std(quant.dequantise(up))) / float(np.std(exact)) - 1) < 0.1
    assert not np.array_equal(quant.dequantise(up)[0], quant.dequantise(up)[1])
