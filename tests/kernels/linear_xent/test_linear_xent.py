# SPDX-License-Identifier: Apache-2.0
"""The fused head and loss is the plain one: values, gradients, and what it does not compute."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params, quant
from jaxpost.kernels.linear_xent import chosen, linear_xent
from jaxpost.kernels.linear_xent.chosen import likeliest
from jaxpost.losses import cross_entropy
from jaxpost.models import decoder
from jaxpost.params import ParamSpec, normal
from tests.jaxprs import equations, products

B, S, D, V = 2, 7, 8, 11  # no two products of theirs are alike: they are told apart by their shapes
contract_head = decoder.contract_head(decoder.Decoder(V, D, layers=1, heads=1, kv_heads=1, head_size=2, ffn=2))
SPECS = {"head": ParamSpec((D, V), ": d : v", normal(0.5)), "embed": ParamSpec((V, D), ": v : d", normal(0.5))}


def head(kind: str) -> tuple[Any, Any]:
    """Trained weights, and a function from them to the head's part of the tree."""
    name = "embed" if "tied" in kind else "head"
    specs = {name: SPECS[name]}
    start = params.init(specs, jax.random.key(1))
    base = quant.quantise_tree(start, specs, quant.Int8(), (name,)) if "int8" in kind else start
    if "lora" in kind:
        edits = params.init(delta.Lora(2, targets=(name,))(specs), jax.random.key(2))
        trained, fixed = delta.partition({name: edits[name].replace(b=0.3 * jnp.ones_like(edits[name].b))})
        return trained, lambda t: delta.bind(base, delta.combine(t, fixed))
    if "full" in kind:
        trained = jax.tree.map(lambda w: 0.1 * jnp.sin(jnp.arange(w.size)).reshape(w.shape), start)
        return trained, lambda t: delta.bind(base, {name: delta.Dense(t[name])})
    return (start, lambda t: t) if "int8" not in kind else ({}, lambda t: base)


HEADS = (
    "plain",
    "tied",
    "lora",
    "tied lora",
    "tied full",
    "int8",
    "int8 tied",
    "int8 lora",
    "int8 tied lora",
    "int8 full",
)
smoothed = functools.partial(cross_entropy, label_smoothing=0.1)
rng = np.random.default_rng(0)
HIDDEN = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
TARGETS = jnp.asarray(rng.integers(0, V, (B, S)), jnp.int32)
SCALE = jnp.asarray(rng.integers(0, 2, (B, S)) * rng.random((B, S)), jnp.float32)


def plain(token_loss, weights, hidden):
    logits = contract_head(hidden, weights).astype(jnp.float32)
    losses = token_loss(logits, TARGETS)
    return jnp.sum(losses * SCALE), losses, (jnp.argmax(logits, -1) == TARGETS).astype(jnp.float32)


def fused(token_loss, weights, hidden, chunk=6):
    return linear_xent(contract_head, token_loss, weights, hidden, TARGETS, SCALE, chunk)


def assert_close(one, other, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), one, other)


def test_number_of_heads():
    assert (
        len(HEADS) == 10 and sum("lora" in kind for kind in HEADS) == 4 and sum("int8" in kind for kind in HEADS) == 5
    )


@pytest.mark.parametrize("kind, token_loss", [*((kind, cross_entropy) for kind in HEADS), ("int8 lora", smoothed)])
def test_value_and_gradients(kind, token_loss):
    """In chunks of three tokens a row, which do not divide seven."""
    trained, whole = head(kind)

    def run(f):
        def loss(t, h):
            total, *rest = f(token_loss, whole(t), h)
            return 1.7 * total, rest

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(trained, HIDDEN)

    assert_close(run(fused), run(plain))


def test_without_a_gradient():
    assert_close(fused(cross_entropy, head("plain")[0], HIDDEN), plain(cross_entropy, head("plain")[0], HIDDEN))


@pytest.mark.parametrize("chunk", [1, 4, 2048])
def test_any_chunk(chunk):
    trained, whole = head("lora")

    def run(f):
        return jax.jit(jax.value_and_grad(lambda t, h: f(cross_entropy, whole(t), h)[0], (0, 1)))(trained, HIDDEN)

    assert_close(run(functools.partial(fused, chunk=chunk)), run(plain))


def through(kind: str, wrap) -> Any:
    trained, whole = head(kind)
    return [
        jax.jit(jax.grad(wrap(lambda t, h, f=f: f(cross_entropy, whole(t), h)[0]), (0, 1)))(trained, HIDDEN)
        for f in (fused, plain)
    ]


@pytest.mark.parametrize("kind", ["plain", "int8 tied lora"])
def test_under_checkpoint(kind):
    assert_close(*through(kind, jax.checkpoint))


@pytest.mark.parametrize("kind", ["plain", "int8 tied lora"])
def test_under_scan(kind):
    """A gradient through a loop over microbatches."""

    def repeated(f):
        def loss(t, h):
            return jax.lax.scan(lambda total, h: (total + f(t, h), None), 0.0, jnp.stack([h, 2 * h]))[0]

        return loss

    assert_close(*through(kind, repeated))


def test_under_vmap():
    trained, whole = head("lora")
    many = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), trained)
    hidden = jnp.stack([HIDDEN, -HIDDEN])

    def run(f):
        one = jax.grad(lambda t, h: f(cross_entropy, whole(t), h)[0], (0, 1))
        return jax.jit(jax.vmap(one))(many, hidden)

    assert_close(run(fused), run(plain))


def gradient_products(f, kind: str, trained_head: bool):
    trained, whole = head(kind)
    if trained_head:
        return products(jax.grad(lambda t, h: f(cross_entropy, whole(t), h)[0], (0, 1)), trained, HIDDEN)
    return products(jax.grad(lambda h: f(cross_entropy, whole(trained), h)[0]), HIDDEN)


@pytest.mark.parametrize("kind", ["plain", "tied", "int8", "lora", "tied lora"])
def test_a_frozen_head_costs_no_gradient_of_it(kind):
    weight_sized = {(D, V), (V, D)}
    assert not weight_sized & set(gradient_products(fused, kind, trained_head=False))
    if kind in ("plain", "tied"):
        assert weight_sized & set(gradient_products(fused, kind, trained_head=True)), "and a trained one does"
    if "lora" in kind:
        assert not weight_sized & set(gradient_products(fused, kind, trained_head=True)), "the base stays frozen"


def test_a_frozen_head_costs_nothing_in_a_checkpointed_loop_either():
    _, whole = head("plain")
    weights = whole(head("plain")[0])

    def loss(hidden):
        step = jax.checkpoint(lambda total, h: (total + fused(cross_entropy, weights, h)[0], None))
        return jax.lax.scan(step, 0.0, jnp.stack([hidden, hidden]))[0]

    made = products(jax.grad(loss), HIDDEN)
    assert made and not {(D, V), (V, D)} & set(made)


def test_the_logits_of_all_tokens_never_exist():
    trained, whole = head("plain")
    jaxpr = jax.make_jaxpr(jax.grad(lambda t, h: fused(cross_entropy, whole(t), h)[0], (0, 1)))(trained, HIDDEN)
    sizes = {var.aval.size for equation in equations(jaxpr.jaxpr) for var in equation.outvars}
    assert B * S * V not in sizes and max(sizes) < B * S * V


def test_sixteen_bits_in_and_gradients_out_with_float32_sums():
    trained, _ = head("plain")
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), (trained, HIDDEN))
    value, gradients = jax.value_and_grad(lambda t, h: fused(cross_entropy, t, h)[0], (0, 1))(*half)
    assert value.dtype == jnp.float32 and {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), half)
    wanted = jax.grad(lambda t, h: plain(cross_entropy, t, h)[0], (0, 1))(*wide)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * float(jnp.max(jnp.abs(b))))


def test_tokens_of_weight_zero_do_not_matter_whatever_their_target():
    trained, _ = head("plain")
    targets = jnp.where(SCALE == 0, -100, TARGETS)

    def run(targets):
        def loss(t, h):
            return linear_xent(contract_head, cross_entropy, t, h, targets, SCALE, 6)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(trained, HIDDEN)

    assert int(jnp.sum(SCALE == 0)) > 3
    assert_close(run(targets), run(TARGETS))


def test_losses_hits_and_scale_carry_no_gradient():
    trained, _ = head("plain")
    for i in (1, 2):
        gradient = jax.grad(lambda h, i=i: jnp.sum(fused(cross_entropy, trained, h)[i]))(HIDDEN)
        assert not np.any(gradient)
    by_scale = jax.grad(lambda s: linear_xent(contract_head, cross_entropy, trained, HIDDEN, TARGETS, s)[0])(SCALE)
    assert not np.any(by_scale)


def test_a_head_with_dropout():
    """The key rides in the weights, where it has no gradient: no key, no dropout; in one chunk it is the plain head."""
    lora = delta.LowRank(jnp.ones((D, 1)), 0.1 * jnp.arange(1.0 * V)[None], jnp.ones(()), dropout=0.5)
    start = params.init({"head": SPECS["head"]}, jax.random.key(1))

    def run(f, key):
        def loss(t, h):
            return f(cross_entropy, delta.bind(start, {"head": lora.replace(a=t)}, key), h)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(lora.a, HIDDEN)

    whole = functools.partial(fused, chunk=2048)
    keys = [None, jax.random.key(0), jax.random.key(1)]
    values = [run(whole, key) for key in keys]
    for key, value in zip(keys, values, strict=True):
        assert_close(value, run(plain, key))
    assert len({float(value) for value, _ in values}) == 3


def test_words_that_are_alike_share_a_hit():
    logits = jnp.asarray([[1.0, 3.0, 3.0], [2.0, 0.0, 0.0], [-jnp.inf, -jnp.inf, -1.0], [0.0, -1.0, -2.0]])
    targets = jnp.asarray([2, 1, 2, -100])
    np.testing.assert_array_equal(likeliest(logits, targets), [0.5, 0.0, 1.0, 0.0])
    assert chosen(logits, targets).tolist() == [3.0, 0.0, -1.0, 0.0]
    assert likeliest(jnp.zeros((1, 8)), jnp.asarray([3])).tolist() == [0.125], "a model that knows nothing"
