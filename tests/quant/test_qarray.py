# SPDX-License-Identifier: Apache-2.0
"""A quantised weight as a leaf of a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import params, quant, trees
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder, specs

CONFIG = Decoder(vocab=14, d=8, layers=2, heads=4, kv_heads=2, head_size=4, ffn=12, dtype="bfloat16")
SPECS = specs(CONFIG)
WEIGHTS = params.init(SPECS, jax.random.key(0))


def test_matrices_become_codes_and_the_rest_stays():
    flat = trees.flatten(quant.quantise_tree(WEIGHTS, SPECS, quant.Int8()))
    quantised = {path for path, leaf in flat.items() if isinstance(leaf, quant.QArray)}
    assert {path.rsplit("/", 1)[-1] for path in quantised} == {"q", "k", "v", "o", "gate", "up", "down"}
    for path, leaf in trees.flatten(WEIGHTS).items():
        assert path in quantised or flat[path] is leaf


def test_targets_choose_and_a_typo_is_a_fault():
    flat = trees.flatten(quant.quantise_tree(WEIGHTS, SPECS, quant.Int8(), ("embed", "head")))
    assert {path for path, leaf in flat.items() if isinstance(leaf, quant.QArray)} == {"embed", "head"}
    with pytest.raises(Fault, match="quantised weights: no parameter matches 'haed'; did you mean head"):
        quant.quantise_tree(WEIGHTS, SPECS, quant.Int8(), ("haed",))


def test_dequantising_a_tree_gives_plain_arrays_of_the_same_form():
    plain = quant.dequantise_tree(quant.quantise_tree(WEIGHTS, SPECS, quant.Int8()), jnp.bfloat16)
    assert jax.tree.structure(plain) == jax.tree.structure(WEIGHTS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=8e-4), plain, WEIGHTS)


def test_each_layer_has_its_own_scale_and_scan_strips_it():
    w = jnp.stack([jnp.ones((4, 3)), 100 * jnp.ones((4, 3))])
    q = quant.quantise(w, params.ParamSpec((2, 4, 3), "l : d : f", params.normal(1.0)), quant.Int8())
    np.testing.assert_allclose(q.scales["scale"][:, 0, 0], [1 / 127, 100 / 127], rtol=1e-6)
    _, layers = jax.lax.scan(lambda c, layer: (c, quant.dequantise(layer)), None, q)
    np.testing.assert_allclose(layers, w, rtol=1e-6)


def test_it_is_a_pytree_whose_format_is_static():
    q = quant.quantise(jnp.ones((4, 3)), params.ParamSpec((4, 3), ": d : f", params.normal(1.0)), quant.Int8())
    assert q.ndim == 2 and len(jax.tree.leaves(q)) == 2
    assert jax.jit(lambda q: q)(q).format == quant.Int8()
    doubled = jax.vmap(quant.dequantise)(jax.tree.map(lambda x: jnp.stack([x, x]), q))
    np.testing.assert_allclose(doubled, np.ones((2, 4, 3)), rtol=1e-6)


def test_letters_stand_where_arrays_do():
    q = quant.quantise(jnp.ones((4, 3)), params.ParamSpec((4, 3), ": d : f", params.normal(1.0)), quant.Int8())
    named = q.letters("d", "f")
    assert jax.tree.structure(named) == jax.tree.structure(q)
    assert named.codes == "d f" and named.scales == {"scale": "d f"}
