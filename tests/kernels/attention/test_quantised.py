# SPDX-License-Identifier: Apache-2.0
"""Attention in 8-bit integers, interpreted on a CPU: how far from the reference it is, and what must hold exactly; and
compiled for three generations of TPUs."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.data.nano import Documents
from jaxpost.faults import Fault
from jaxpost.kernels import devices
from jaxpost.kernels.attention import Rows, attention, quantised
from jaxpost.kernels.attention.api import IMPLEMENTATIONS
from jaxpost.kernels.attention.quantised import Blocks, differentiable, evened
from jaxpost.kernels.attention.quantised_kernel import runs
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.models import decoder
from jaxpost.recipes import base
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.shard.aot import topology
from tests.kernels.attention.test_splash import distance, inputs, reference, rows_of

SMALL = Blocks(128, 256)
RAN: Counter[str] = Counter()

CASES = {
    "packed": dict(lengths=[[60, 70, 30], [128, 1, 31]]),
    "many blocks": dict(lengths=[[300, 170, 142], [600]]),
    "odd length": dict(lengths=[[100, 33], [50, 37]]),
    "one block": dict(lengths=[[5, 4], [3, 6]]),
    "one example a row": dict(lengths=[[150], [7]], most=1),
    "window": dict(lengths=[[600, 55], [656]], window=64),
    "wide window": dict(lengths=[[200, 55], [256]], window=1000),
    "one key/value head": dict(lengths=[[60, 70]], heads=4, kv_heads=1),
    "no groups": dict(lengths=[[60, 70]], heads=2, kv_heads=2),
    "scale": dict(lengths=[[60, 70]], scale=0.1),
    "heads of 128": dict(lengths=[[60, 70]], size=128),
    "heads of 256": dict(lengths=[[60, 70]], size=256),
    "heads of 96": dict(lengths=[[60, 70]], size=96),
    "large queries": dict(lengths=[[300, 10]], blocks=Blocks(256, 256)),
}


def interpreted(rows, window=None, scale=None, blocks=SMALL):
    @jax.jit
    def attend(q, k, v):
        return differentiable(q, k, v, rows, window, q.shape[-1] ** -0.5 if scale is None else scale, blocks, True)

    return attend


def both(case):
    """Result and reference at real tokens, and what they were made of."""
    options = dict(CASES[case])
    rows = rows_of(options.pop("lengths"), options.pop("most", 3))
    sizes = {name: options.pop(name) for name in ("heads", "kv_heads", "size") if name in options}
    q, k, v, _ = inputs(rows, **sizes)
    real = np.asarray(rows.segments > 0)
    found = np.asarray(interpreted(rows, **options)(q, k, v))
    assert np.all(np.isfinite(found)), "padding too"
    return found[real], np.asarray(reference(rows, **options)(q, k, v))[real]


@pytest.mark.parametrize("case", CASES)
def test_it_is_within_two_hundredths_of_the_reference(case):
    found, wanted = both(case)
    assert distance(found, wanted) < 0.02
    RAN["interpreted"] += 1


def test_sharp_distributions_are_within_four_hundredths():
    rows = rows_of([[300, 170, 142]])
    q, k, v, _ = inputs(rows, size=128)
    assert distance(interpreted(rows)(3 * q, k, v), reference(rows)(3 * q, k, v)) < 0.04


@settings(deadline=None, max_examples=3, derandomize=True)
@given(st.data())
def test_rows_of_any_lengths(data):
    window = data.draw(st.sampled_from([None, 1, 40, 300]))
    length = data.draw(st.sampled_from([1, 130, 400]))
    cuts = sorted(data.draw(st.lists(st.integers(1, length), max_size=3, unique=True)))
    lengths = [b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True) if b > a]
    rows = rows_of([lengths, [length]], most=4)
    q, k, v, _ = inputs(rows)
    found = interpreted(rows, window=window)(q, k, v)
    assert distance(found, reference(rows, window=window)(q, k, v)) < 0.02


def test_a_channel_that_all_keys_share_changes_nothing():
    """Smoothing: without it the codes would be spent on the channel."""
    rows = rows_of([[60, 70, 30], [128, 1, 31]])
    q, k, v, _ = inputs(rows)
    shared = 20.0 * jax.nn.one_hot(jnp.array([3, 40]), 64).sum(0)[None, None, None]
    wanted = reference(rows)(q, k + shared, v + shared)
    found = interpreted(rows)(q, k + shared, v + shared)
    real = np.asarray(rows.segments > 0)
    assert distance((found - shared)[real], (wanted - shared)[real]) < 0.02
    np.testing.assert_allclose(found - shared, interpreted(rows)(q, k, v), atol=0.02)


def test_examples_of_a_row_never_see_each_other():
    """Not even by a scale: what is loud elsewhere costs precision, but padding does not even do that."""
    rows = rows_of([[60, 70], [100]])
    q, k, v, _ = inputs(rows)
    quiet = interpreted(rows)(q, k, v)
    padding = (rows.segments == 0)[..., None, None]
    loud = [jnp.where(padding, 1e4, x) for x in (q, k, v)]
    real = np.asarray(rows.segments > 0)
    np.testing.assert_array_equal(interpreted(rows)(*loud)[real], quiet[real])
    other = (rows.segments == 2)[..., None, None]
    louder = [jnp.where(other, 10 * x, x) for x in (q, k, v)]
    first = np.asarray(rows.segments[0] == 1)
    assert distance(interpreted(rows)(*louder)[0, first], reference(rows)(q, k, v)[0, first]) < 0.2


def test_blocks_that_nobody_sees_are_left_out():
    rows = rows_of([[300, 212], [200]])
    starts = quantised.seen_from(rows.positions, None)
    first, clear = runs(starts, rows.segments > 0, 128, 128)
    assert first.tolist() == [[0, 0, 0, 2], [0, 0, 4, 4]], "padding: behind the last block"
    assert clear.tolist()[0] == [0, 0, 3, 3]
    near, _ = runs(quantised.seen_from(rows.positions, 100), rows.segments > 0, 128, 128)
    assert near.tolist() == [[0, 0, 1, 2], [0, 0, 4, 4]]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.integers(1, 40_000), st.integers(1, 16), st.integers(1, 8))
def test_blocks_divide_a_length_that_is_hardly_longer_than_the_row(tokens, queries, pairs):
    asked = Blocks(128 * queries, 256 * pairs)
    found = evened(tokens, asked)
    length = -(-tokens // np.lcm(found.q, found.kv)) * np.lcm(found.q, found.kv)
    assert found.q <= asked.q and found.kv <= asked.kv and found.q % 128 == 0 and found.kv % 256 == 0
    assert length < tokens + 256 * (-(-tokens // max(asked.q, asked.kv)) + 1)


def test_gradients_are_the_references():
    rows = rows_of([[60, 70, 30], [128, 1, 31]])
    q, k, v, cotangent = inputs(rows)
    found = jax.grad(lambda *x: jnp.sum(interpreted(rows, window=50)(*x) * cotangent), (0, 1, 2))(q, k, v)
    wanted = jax.grad(lambda *x: jnp.sum(reference(rows, window=50)(*x) * cotangent), (0, 1, 2))(q, k, v)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_every_device_has_its_own_rows_and_heads():
    rows = rows_of([[60, 40], [100], [3, 90], [50]])
    q, k, v, _ = inputs(rows, heads=4, kv_heads=2)
    alone = interpreted(rows)(q, k, v)
    with jax.set_mesh(make_mesh(MeshShape(tensor=2))):
        found = jax.jit(interpreted(rows))(q, k, v)
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_next_tokens_of_the_nano_model(monkeypatch):
    """The divergence from the distributions that exact attention gives: below 2e-4 nats on average, 0.05 at most, where
    bfloat16 has 2e-6 and 7e-4."""
    mesh = make_mesh(MeshShape())
    model = base.plain(base.Pretrained("nano", dtype="float32"), mesh)
    ids = [token for text in Documents("test", 8) for token in model.tokenizer.encode(text)]
    tokens = jnp.asarray(ids[:512])[None]
    rows = decoder.rows(tokens, jnp.ones_like(tokens), jnp.arange(512)[None], 1)

    def said(attend):
        monkeypatch.setattr(decoder, "attention", attend)
        logits = jax.jit(lambda weights: decoder.logits(model.config, weights, tokens, rows))(model.weights)
        return np.asarray(jax.nn.log_softmax(logits), np.float64)

    def attend(q, k, v, rows, window, scale, cap):
        assert cap is None
        return quantised.attend(q, k, v, rows.segments, rows.positions, window, scale, SMALL, interpret=True)

    exact, found = said(functools.partial(attention, impl="reference")), said(attend)
    divergence = np.sum(np.exp(exact) * (exact - found), axis=-1)
    assert divergence.mean() < 2e-4 and divergence.max() < 0.05
    assert divergence.mean() > 1e-7, "it is not the reference that is compared with itself"
    assert np.mean(exact.argmax(-1) == found.argmax(-1)) > 0.98


def call(impl, size=64, most=1, cap=None, tokens=2):
    q, kv = jnp.ones((1, tokens, 2, size), jnp.bfloat16), jnp.ones((1, tokens, 1, size), jnp.bfloat16)
    rows = Rows(jnp.ones((1, tokens), jnp.int32), jnp.arange(tokens)[None], most)
    return jax.eval_shape(lambda q, kv: attention(q, kv, kv, rows, cap=cap, impl=impl), q, kv)


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(size=80), "head size 80"),
        (dict(size=32), "head size 32"),
        (dict(size=288), "head size 288"),
        (dict(cap=2.0), "does not squash scores"),
        (dict(most=None), "the number of segments in a row is not known"),
        (dict(tokens=200_000), "200000 tokens do not fit"),
    ],
)
def test_what_it_cannot_serve_it_refuses_with_the_reason(monkeypatch, options, reason):
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    with pytest.raises(Unsupported, match=reason):
        call("quantised", **options)


def test_it_is_never_chosen_and_needs_a_tpu():
    assert "quantised" not in IMPLEMENTATIONS
    with pytest.raises(Unsupported, match="needs a TPU"):
        call("quantised")


TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
SHAPES = {
    "llama-1b": dict(s=2048, n=32, k=8, h=64),
    "gemma-3-1b": dict(s=3000, n=4, k=1, h=256, window=512),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_it_compiles_for_tpus(name, shape):
    try:
        devices = topology(name)
    except Fault as why:
        pytest.skip(f"quantised for {name}: {why}")
    size = dict(SHAPES[shape])
    s, n, k, h = (size.pop(name) for name in "snkh")
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2), devices)
    with jax.set_mesh(mesh):
        heads, row = (NamedSharding(mesh, P("fsdp", *rest)) for rest in ((None, "tensor"), ()))
        shapes = [((2, s, m, h), jnp.bfloat16, heads if m % 2 == 0 else row) for m in (n, k, k)]
        shapes += [((2, s), jnp.int32, row)] * 2
        arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype, place in shapes]
        run = jax.jit(lambda q, k, v, *rows: attention(q, k, v, Rows(*rows, 64), impl="quantised", **size))
        text = run.lower(*arrays).compile().as_text()
    assert "quantised_attention" in text
    RAN["compiled"] += 1


def test_as_many_cases_ran_as_there_are(chosen, alone):
    """A case that silently does not run is no case."""
    interpreted = sum(name.startswith("test_it_is_within") for name in chosen)
    compiled = sum(name.startswith("test_it_compiles_for_tpus") for name in chosen)
    assert interpreted >= 5 and compiled >= len(TOPOLOGIES)
    if alone:
        try:
            topology(TOPOLOGIES[0])
        except Fault:
            compiled = 0
        assert (RAN["interpreted"], RAN["compiled"]) == (interpreted, compiled)
