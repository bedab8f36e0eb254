# SPDX-License-Identifier: Apache-2.0
"""LoRA: shapes, scale, dropout, and targets that make no sense."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params
from jaxpost.delta import LowRank
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder, specs

CONFIG = Decoder(vocab=14, d=8, layers=2, heads=4, kv_heads=2, head_size=4, ffn=12, dtype="bfloat16")
SPECS = specs(CONFIG)


def test_shapes_follow_from_the_axes():
    lora = delta.Lora(rank=3, targets=("q", "o", "embed"))(SPECS)
    start = params.init(lora, jax.random.key(0))
    shapes = {path: (e.a.shape, e.b.shape, e.scale.shape) for path, e in start.items()}
    assert shapes == {
        "embed": ((14, 3), (3, 8), ()),
        "layers/attn/q": ((2, 8, 3), (2, 3, 4, 4), (2,)),
        "layers/attn/o": ((2, 4, 4, 3), (2, 3, 8), (2,)),
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    assert not np.any(start["layers/attn/q"].b) and np.all(start["layers/attn/q"].a != 0)
    assert not np.any(start["embed"].a) and 0.5 < float(jnp.std(start["embed"].b)) < 2


def test_default_targets_are_the_matrices_of_the_layers():
    assert {path.rsplit("/", 1)[-1] for path in delta.Lora()(SPECS)} == {"q", "k", "v", "o", "gate", "up", "down"}


@pytest.mark.parametrize(
    "rank, alpha, stable, scale", [(4, 8.0, False, 2.0), (4, 4.0, True, 2.0), (1, 3.0, False, 3.0)]
)
def test_scale(rank, alpha, stable, scale):
    lora = delta.Lora(rank, alpha, ("q",), rank_stabilised=stable)(SPECS)
    start = params.init(lora, jax.random.key(0))["layers/attn/q"]
    np.testing.assert_allclose(start.scale, [scale, scale])
    assert 0.7 / rank < float(jnp.std(start.a)) < 1.4 / rank


@pytest.mark.parametrize(
    "config, text",
    [
        (delta.Lora(rank=0), "rank is 0"),
        (delta.Lora(rank=-1), "rank is -1"),
        (delta.Lora(dropout=1.0), "dropout is 1.0"),
        (delta.Lora(dropout=-0.1), "dropout is -0.1"),
        (delta.Lora(targets=("norm",)), "'norm' is no matrix"),
        (delta.Lora(targets=("attn_norm",)), "'layers/attn_norm' is no matrix"),
        (delta.Lora(targets=("q", "kk")), "no parameter matches 'kk'"),
        (delta.Lora(targets=("q_bias",)), "no parameter matches 'q_bias'"),
        (delta.Lora(targets=("q_proj",)), "no parameter matches 'q_proj'"),
    ],
)
def test_bad_input_is_a_fault(config, text):
    with pytest.raises(Fault, match=text):
        config(SPECS)


RATE = 0.25


def edit(layers: int = 0, rate: float = RATE, size: int = 64) -> LowRank:
    """x is summed up by the factors, so that the result counts what was kept."""
    lead = (layers,) if layers else ()
    return LowRank(jnp.ones((*lead, size, 1)), jnp.ones((*lead, 1, 2)), jnp.ones(lead), dropout=rate)


def bound(key, layers: int = 0, rate: float = RATE):
    lead = (layers,) if layers else ()
    return delta.bind({"w": jnp.zeros((*lead, 64, 2))}, {"w": edit(layers, rate)}, key)["w"]


def run(w, rows: int = 500):
    return delta.einsum("bsd,df->bsf", jnp.ones((rows, 1, 64)), w)[:, 0, 0]


def test_dropout_keeps_the_expectation_and_the_rate():
    y = run(bound(jax.random.key(0)))
    # Each result is a sum of 64 Bernoulli values over their mean: standard error of the mean of 500 of them.
    error = math.sqrt(64 * RATE * (1 - RATE)) / (1 - RATE) / math.sqrt(500)
    assert abs(float(jnp.mean(y)) - 64) < 4 * error
    kept = y * (1 - RATE)
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-3)
    np.testing.assert_allclose(np.var(kept), 64 * RATE * (1 - RATE), rtol=0.3)


def test_dropout_needs_a_key_and_a_rate():
    np.testing.assert_array_equal(run(bound(None)), np.full(500, 64.0))
    assert bound(jax.random.key(0), rate=0.0).key is None
    np.testing.assert_array_equal(run(bound(jax.random.key(0), rate=0.0)), np.full(500, 64.0))


def test_dropout_is_the_keys_own():
    one, again, other = (run(bound(jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_dropout_differs_from_layer_to_layer_and_place_to_place():
    w = bound(jax.random.key(0), layers=3)
    _, ys = jax.lax.scan(lambda c, w: (c, run(w)), None, w)
    assert len({y.tobytes() for y in np.asarray(ys)}) == 3
    tree = delta.bind({"q": jnp.zeros((64, 2)), "k": jnp.zeros((64, 2))}, {"q": edit(), "k": edit()}, jax.random.key(0))
    assert not np.array_equal(run(tree["q"]), run(tree["k"]))


def test_dropout_touches_the_factors_only_and_never_ids():
    w = delta.bind({"w": jnp.ones((64, 2))}, {"w": edit(rate=0.9)}, jax.random.key(0))["w"]
    zeroed = w.replace(edit=w.edit.replace(b=jnp.zeros((1, 2))))
    np.testing.assert_array_equal(run(zeroed), np.full(500, 64.0))
    np.testing.assert_array_equal(delta.take(w, jnp.arange(3)), np.full((3, 2), 2.0))


def test_dropout_and_its_gradient_are_the_same_under_remat_and_jit():
    w = bound(jax.random.key(3), layers=2)
    x = jax.random.normal(jax.random.key(1), (4, 1, 64))

    def loss(x, wrap):
        body = wrap(lambda x, w: (x * jnp.sum(delta.einsum("bsd,df->bsf", x, w)) / 64, None))
        return jnp.sum(jax.lax.scan(body, x, w)[0])

    plain = jax.value_and_grad(loss)(x, lambda f: f)
    rematerialised = jax.jit(jax.value_and_grad(loss), static_argnums=1)(x, jax.checkpoint)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, rematerialised)


def test_the_gradient_through_a_dropped_input_is_zero():
    w = bound(jax.random.key(0))
    x = jnp.ones((1, 1, 64))
    gradient = jax.grad(lambda x: jnp.sum(delta.einsum("bsd,df->bsf", x, w)))(x)
    np.testing.assert_allclose(np.unique(gradient), [0.0, 2 / (1 - RATE)], rtol=1e-6)


def test_the_usual_targets_are_those_that_the_model_has():
    ungated = specs(dataclasses.replace(CONFIG, gated=False))
    names = {path.split("/")[-1] for path in delta.Lora()(SPECS)}
    assert {path.split("/")[-1] for path in delta.Lora()(ungated)} == names - {"gate"}
    with pytest.raises(Fault, match="lora targets: no parameter matches 'gate'"):
        delta.Lora(targets=("q", "gate"))(ungated)
