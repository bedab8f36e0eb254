# SPDX-License-Identifier: Apache-2.0
"""Splash attention interpreted on a CPU against the reference, and compiled for three generations of TPUs."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import partial_eval
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.faults import Fault
from jaxpost.kernels import devices
from jaxpost.kernels.attention import Rows, attention
from jaxpost.kernels.attention.blocks import dividing
from jaxpost.kernels.attention.splash import Blocks, evened, spread
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.models.remat import rematerialised
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.shard.aot import topology
from tests.jaxprs import equations

SMALL = Blocks(128, 128, 128, 128, 128, 128)
UNEVEN = Blocks(q=128, kv=256, kv_compute=128, q_dkv=256, kv_dkv=512, kv_dkv_compute=256)
RAN: Counter[str] = Counter()

CASES = {
    "packed": dict(lengths=[[60, 70, 30], [128, 1, 31]]),
    "odd length": dict(lengths=[[100, 33], [50, 37]]),
    "one block": dict(lengths=[[5, 4], [3, 6]]),
    "one example a row": dict(lengths=[[150], [7]], most=1),
    "window": dict(lengths=[[200, 55], [256]], window=64),
    "window of one": dict(lengths=[[20], [3, 4]], window=1),
    "wide window": dict(lengths=[[200, 55], [256]], window=1000),
    "cap": dict(lengths=[[60, 70, 30], [128, 1, 31]], cap=2.0),
    "cap and window": dict(lengths=[[90, 70], [128, 1, 31]], cap=2.0, window=33),
    "one key/value head": dict(lengths=[[60, 70]], heads=4, kv_heads=1),
    "no groups": dict(lengths=[[60, 70]], heads=2, kv_heads=2),
    "scale": dict(lengths=[[60, 70]], scale=0.7),
    "heads of 128": dict(lengths=[[60, 70]], size=128),
    "heads of 256": dict(lengths=[[60, 70]], size=256),
    "heads of 80": dict(lengths=[[60, 70]], size=80),
    "uneven blocks": dict(lengths=[[300, 170, 3], [480]], blocks=UNEVEN),
}


def rows_of(lengths, most=3, tokens=0) -> Rows:
    """Rows of examples of these lengths, the longest row without padding unless it has fewer tokens than asked for."""
    segments = np.zeros((len(lengths), max(tokens, *map(sum, lengths))), np.int32)
    positions = np.zeros_like(segments)
    for row, examples in enumerate(lengths):
        at = 0
        for number, length in enumerate(examples, 1):
            segments[row, at : at + length], positions[row, at : at + length] = number, np.arange(length)
            at += length
    return Rows(jnp.asarray(segments), jnp.asarray(positions), most)


def inputs(rows, heads=4, kv_heads=2, size=64, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(*rows.segments.shape, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def interpreted(rows, window=None, scale=None, cap=None, blocks=SMALL):
    segments = rows.segments if rows.most > 1 else None

    def attend(q, k, v):
        own = q.shape[-1] ** -0.5 if scale is None else scale
        return spread(q, k, v, segments, window, own, cap, blocks, interpret=True)

    return attend


def reference(rows, window=None, scale=None, cap=None, blocks=SMALL):
    return lambda q, k, v: attention(q, k, v, rows, window=window, scale=scale, cap=cap, impl="reference")


def values_and_gradients(attend, rows, q, k, v, cotangent):
    real = (rows.segments > 0)[..., None, None]

    def loss(q, k, v):
        out = jnp.where(real, attend(q, k, v), 0)
        return jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32)), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def distance(found, wanted) -> float:
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_references(case):
    options = dict(CASES[case])
    rows = rows_of(options.pop("lengths"), options.pop("most", 3))
    sizes = {name: options.pop(name) for name in ("heads", "kv_heads", "size") if name in options}
    given = inputs(rows, **sizes)
    found = values_and_gradients(interpreted(rows, **options), rows, *given)
    wanted = values_and_gradients(reference(rows, **options), rows, *given)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        if options.get("window") == 1 and name in ("dq", "dk"):  # one key: its weight is 1 whatever the score
            np.testing.assert_allclose(one, other, atol=1e-5)
        else:
            assert distance(one, other) < 2e-6, name
    RAN["interpreted"] += 1


@pytest.mark.parametrize("case", ["packed", "cap and window", "heads of 128"])
def test_in_sixteen_bits_it_is_as_near_to_float32_as_the_reference(case):
    options = dict(CASES[case])
    rows = rows_of(options.pop("lengths"))
    given = inputs(rows, size=options.pop("size", 64))
    given = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in given]
    wanted = values_and_gradients(reference(rows, **options), rows, *given)
    found = values_and_gradients(interpreted(rows, **options), rows, *(x.astype(jnp.bfloat16) for x in given))
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        assert one.dtype == jnp.bfloat16
        assert distance(one, other) < 1e-2, name


def test_packed_rows_are_the_examples_alone():
    lengths = [60, 70, 30]
    rows = rows_of([lengths])
    q, k, v, _ = inputs(rows)
    packed = interpreted(rows)(q, k, v)
    for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        alone = slice(start, start + length)
        own = interpreted(rows_of([[length]], most=1))(q[:, alone], k[:, alone], v[:, alone])
        np.testing.assert_allclose(packed[:, alone], own, atol=2e-6)


def test_padding_is_finite_and_gives_nothing_to_real_tokens():
    rows = rows_of([[100], [40, 20]])
    q, k, v, cotangent = inputs(rows)
    found = values_and_gradients(interpreted(rows), rows, q, k, v, cotangent)
    padding = (rows.segments == 0)[..., None, None]
    loud = [jnp.where(padding, 1e3, x) for x in (q, k, v)]
    other = values_and_gradients(interpreted(rows), rows, *loud, cotangent)
    for one, two in zip(found, other, strict=True):
        assert np.all(np.isfinite(two))
        np.testing.assert_allclose(jnp.where(padding, 0, one), jnp.where(padding, 0, two), atol=1e-6)


@pytest.mark.parametrize("kv_heads, tensor", [(2, 2), (1, 2), (2, 4)])
def test_every_device_has_its_own_rows_and_heads(kv_heads, tensor):
    rows = rows_of([[60, 40], [100], [3, 90], [50]])
    given = inputs(rows, heads=4, kv_heads=kv_heads)
    wanted = values_and_gradients(reference(rows), rows, *given)
    with jax.set_mesh(make_mesh(MeshShape(tensor=tensor))):
        found = values_and_gradients(interpreted(rows), rows, *given)
    for one, other in zip(found, wanted, strict=True):
        assert distance(one, other) < 2e-6


def test_heads_that_cannot_be_cut_alike_are_repeated():
    x = jnp.arange(2.0).reshape(1, 1, 2, 1)
    assert dividing(x, 8, 2) is x, "as many as there are devices"
    assert dividing(x, 6, 4) is x, "queries are not cut either"
    assert dividing(x[:, :, :1], 8, 4).shape[2] == 1, "one head is everyone's"
    assert dividing(x, 8, 4).ravel().tolist() == [0, 0, 1, 1]
    assert dividing(jnp.zeros((1, 1, 3, 1)), 24, 4).shape[2] == 12


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.integers(1, 40_000), st.lists(st.integers(1, 24).map(lambda n: 128 * n), min_size=6, max_size=6))
def test_blocks_divide_a_length_that_is_hardly_longer_than_the_row(tokens, sizes):
    asked = Blocks(*sizes)
    found = evened(tokens, asked)
    largest = found.largest
    length = -(-tokens // largest) * largest
    assert all(length % size == 0 and size % 128 == 0 for size in vars(found).values())
    assert all(size <= vars(asked)[name] for name, size in vars(found).items())
    assert found.kv % found.kv_compute == 0 and found.kv_dkv % found.kv_dkv_compute == 0
    assert length < tokens + 128 * -(-tokens // asked.largest) + 128


def block(x, weights):
    """What a decoder does around attention, as far as remat is concerned."""
    rows = rows_of([[60, 40]])
    q, k, v = (checkpoint_name(x[..., None, :] * w, "qkv") for w in weights[:, None, None, None])
    return x + interpreted(rows)(q, k, v)[:, :, 0]


@pytest.mark.parametrize("remat, calls", [("none", 2), ("most", 2), ("attention", 2), ("full", 3)])
def test_keeping_attention_keeps_it_from_running_again(remat, calls):
    def loss(weights, x):
        return jnp.sum(rematerialised(block, remat)(x, weights) ** 2)

    weights, x = jnp.ones((3, 64)), jnp.ones((1, 100, 64))
    traced = jax.make_jaxpr(jax.grad(loss))(weights, x).jaxpr
    traced, _ = partial_eval.dce_jaxpr(traced, [True])  # what nobody reads, the compiler drops
    assert sum(e.primitive.name == "pallas_call" for e in equations(traced)) == calls


def call(impl=None, dtype=jnp.bfloat16, size=64, most=1):
    q, kv = jnp.ones((1, 2, 2, size), dtype), jnp.ones((1, 2, 1, size), dtype)
    rows = Rows(jnp.ones((1, 2), jnp.int32), jnp.arange(2)[None], most)
    return attention(q, kv, kv, rows, impl=impl)


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(size=32), "head size 32"),
        (dict(size=68), "head size 68"),
        (dict(size=264), "head size 264"),
        (dict(most=None), "the number of segments in a row is not known"),
    ],
)
def test_what_it_cannot_serve_it_refuses_with_the_reason(monkeypatch, options, reason):
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    with pytest.raises(Unsupported, match=reason):
        call("splash", **options)
    assert call(**options).shape == (1, 2, 2, options.get("size", 64)), "the reference serves it"


def test_it_needs_a_tpu():
    with pytest.raises(Unsupported, match="needs a TPU"):
        call("splash")


TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
SHAPES = {
    "gemma-2-2b": dict(s=8192, n=8, k=4, h=256, window=4096, cap=50.0),
    "qwen2.5-0.5b": dict(s=1000, n=14, k=2, h=64),
}


COMPILED = [(name, "gemma-2-2b") for name in TOPOLOGIES] + [("v5e:2x2", "qwen2.5-0.5b")]
"""What fills fast memory is tried on every generation, an odd length with key/value heads of 64 on one."""


@pytest.mark.parametrize("name, shape", COMPILED)
def test_it_compiles_for_tpus(name, shape):
    try:
        devices = topology(name)
    except Fault as why:
        pytest.skip(f"splash for {name}: {why}")
    size = dict(SHAPES[shape])
    s, n, k, h = (size.pop(name) for name in "snkh")

    def step(q, k, v, segments, positions):
        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, Rows(segments, positions, 64), impl="splash", **size))

        return jax.grad(loss, (0, 1, 2))(q, k, v)

    mesh = make_mesh(MeshShape(fsdp=2, tensor=2), devices)
    with jax.set_mesh(mesh):
        heads, row = (NamedSharding(mesh, P("fsdp", *rest)) for rest in ((None, "tensor"), ()))
        whole = NamedSharding(mesh, P("fsdp"))
        arrays = [
            jax.ShapeDtypeStruct((2, s, m, h), jnp.bfloat16, sharding=heads if m % 2 == 0 else whole) for m in (n, k, k)
        ]
        numbers = [jax.ShapeDtypeStruct((2, s), jnp.int32, sharding=row)] * 2
        compiled = jax.jit(step).lower(*arrays, *numbers).compile()
    text = compiled.as_text()
    assert "splash_mha_fwd_segmented" in text and "splash_mha_dkv_segmented" in text
    RAN["compiled"] += 1


def test_as_many_cases_ran_as_there_are(chosen, alone):
    """A case that silently does not run is no case."""
    interpreted = sum(name.startswith("test_values_and_gradients") for name in chosen)
    compiled = sum(name.startswith("test_it_compiles_for_tpus") for name in chosen)
    assert interpreted >= 10 and compiled == len(COMPILED) == 4
    if alone:
        assert RAN["interpreted"] == interpreted
        assert RAN["compiled"] == (compiled if _libtpu() else 0)


def _libtpu() -> bool:
    try:
        return bool(topology(TOPOLOGIES[0]))
    except Fault:
        return False
