# SPDX-License-Identifier: Apache-2.0
"""What the decoder's compiled program is made of: one block whatever the depth, nothing for an empty slot, and as
much recomputation as was asked for."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import params as parameters
from jaxpost import trees
from jaxpost.kernels.attention import Rows
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder, embed, head, specs, trunk
from jaxpost.models.remat import Remat

CONFIG = Decoder(vocab=40, d=24, layers=2, heads=4, kv_heads=2, head_size=8, ffn=40)
MODES = get_args(Remat)


def loss(weights, config=CONFIG, remat="none"):
    tokens = jnp.arange(16).reshape(2, 8) % config.vocab
    rows = Rows(jnp.ones((2, 8), jnp.int32), jnp.tile(jnp.arange(8), (2, 1)))
    hidden, _ = trunk(config, weights, embed(config, weights, tokens), rows, remat=remat)
    return jnp.mean(head(config, weights, hidden) ** 2)


def abstract(config):
    return parameters.abstract(specs(config))


def program(config):
    return jax.jit(jax.grad(lambda w: loss(w, config))).lower(abstract(config)).as_text()


def test_the_program_does_not_grow_with_depth():
    shallow, deep = program(CONFIG), program(dataclasses.replace(CONFIG, layers=16))
    assert len(deep.splitlines()) == len(shallow.splitlines()) > 100


def test_empty_slots_leave_the_program_as_if_there_were_none(monkeypatch):
    with_slots = str(jax.make_jaxpr(jax.grad(loss))(abstract(CONFIG)))
    for name in ("plus", "through"):
        monkeypatch.setattr(decoder, name, lambda y, *slot: y)
    monkeypatch.setattr(decoder, "_prefixed", lambda kv, *slot: kv)
    assert str(jax.make_jaxpr(jax.grad(loss))(abstract(CONFIG))) == with_slots


BIASES = [path for path in trees.flatten(specs(CONFIG)) if path.endswith("_bias")]


@pytest.fixture(scope="module")
def weights():
    return parameters.init(specs(CONFIG), jax.random.key(0))


def filled(weights, path, value):
    flat = trees.flatten(weights)
    return trees.unflatten(flat | {path: jnp.full(trees.flatten(specs(CONFIG))[path].shape, value)})


@pytest.mark.parametrize("path", BIASES)
def test_a_filled_slot_acts_and_a_zero_in_it_does_not(weights, path):
    plain, run = loss(weights), jax.jit(loss)
    np.testing.assert_allclose(run(filled(weights, path, 0.0)), plain, rtol=1e-6)
    assert not np.isclose(run(filled(weights, path, 1.0)), plain, rtol=1e-6)


def test_filled_slots_are_trainable_in_every_layer(weights):
    for path in BIASES:
        weights = filled(weights, path, 0.0)
    grads = trees.flatten(jax.jit(jax.grad(loss))(weights))
    for path in BIASES:
        assert np.all(np.max(np.abs(grads[path]).reshape(CONFIG.layers, -1), axis=1) > 0), path


def test_there_is_a_slot_for_every_matrix_of_a_block():
    flat = trees.flatten(specs(CONFIG)["layers"])
    matrices = [path for path, spec in flat.items() if all(spec.groups) and not spec.optional]
    assert sorted(BIASES) == sorted(f"layers/{path}_bias" for path in matrices) and len(BIASES) == 7


def products(remat):
    """Matrix products in the program of one gradient, those within the scans' bodies counted once."""
    return str(jax.make_jaxpr(jax.grad(lambda w: loss(w, remat=remat)))(abstract(CONFIG))).count("dot_general[")


@pytest.mark.parametrize("remat", MODES)
def test_what_is_computed_again_gives_the_same_gradients(weights, remat):
    expected, found = jax.jit(jax.grad(loss))(weights), jax.jit(jax.grad(lambda w: loss(w, remat=remat)))(weights)
    for path, grad in trees.flatten(expected).items():
        if grad is not None:
            np.testing.assert_allclose(trees.flatten(found)[path], grad, rtol=1e-5, atol=1e-8, err_msg=path)


def test_modes_compute_again_as_much_as_they_say():
    counts = {remat: products(remat) for remat in MODES}
    assert counts["none"] < counts["most"] < counts["attention"] < counts["full"], counts
    assert counts["none"] <= counts["dots"] < counts["full"], counts
