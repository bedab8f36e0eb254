# SPDX-License-Identifier: Apache-2.0
"""One suite for every implementation of attention over a cache: values against loops in float64, what must not be seen,
gradients, meshes, and what is refused."""

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxpost.kernels import devices
from jaxpost.kernels.decode_attention import Cached, decode_attention, pallas_gpu, pallas_tpu, stored
from jaxpost.kernels.decode_attention.api import IMPLEMENTATIONS
from jaxpost.kernels.decode_attention.around import blocks_of, seen, served
from jaxpost.kernels.decode_attention.shapes import SHAPES, Shape
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.shard import MeshShape, make_mesh

KINDS = ("model", "int8", "fp8")
GPU = jax.default_backend() == "gpu"
DTYPE = {"pallas_gpu": jnp.bfloat16}
"""What is computed in: float32 where an implementation can, so that its own errors show."""

# The largest error, of results of about one. Weights that meet codes are of 15 bits in the TPU kernel; GPUs round
# weights and results to sixteen bits, of which eight are the number.
TOLERANCE = {"reference": 1e-5, "xla": 1e-5, "pallas_tpu": 3e-4, "pallas_gpu": 0.03}
RAN = Counter()


def attend(impl: str, q, k, v, cached, window=None, scale=None, cap=None, tiling=None):
    """The implementation, jitted; the TPU's kernel interpreted, in small blocks so that there are several."""
    RAN[impl] += 1
    if impl == "pallas_tpu":
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        tiling = tiling or pallas_tpu.Tiling(128 * cached.k.shape[2] * q.shape[-1] * cached.k.dtype.itemsize // 1024)
        return _interpreted(q, k, v, cached, window, scale, cap, tiling)
    call = functools.partial(decode_attention, window=window, scale=scale, cap=cap, impl=impl)
    return jax.jit(call)(q, k, v, cached)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _interpreted(q, k, v, cached, window, scale, cap, tiling):
    return pallas_tpu.attend(q, k, v, cached, window, scale, cap, tiling, interpret=True)


def implementations(*names: str) -> list[Any]:
    needs_gpu = pytest.mark.skipif(not GPU, reason="pallas_gpu: its kernel runs on a Hopper GPU only")
    return [pytest.param(name, marks=[needs_gpu] if name == "pallas_gpu" else []) for name in names]


EVERY = implementations(*IMPLEMENTATIONS)
KERNELS = implementations("pallas_gpu", "pallas_tpu")


def inputs(shape: Shape, kv: str, start, count, dtype=jnp.float32, new: int = 1, seed: int = 0):
    """Random queries, keys and values, in the middle layer of three; what is not visible is finite, and large."""
    rng = np.random.default_rng(seed)
    places = shape.places

    def normal(*sizes):
        return jnp.asarray(rng.standard_normal(sizes), dtype)

    q = 2 * normal(shape.rows, new, shape.heads, shape.size)
    k, v = (normal(shape.rows, new, shape.kv_heads, shape.size) for _ in range(2))
    entries = stored(*(normal(shape.rows, shape.kv_heads, places, shape.size) for _ in range(2)), kv)
    hidden = (np.arange(places)[None] - np.asarray(start)[:, None]) % places >= np.asarray(count)[:, None]

    def stacked(x):
        garbage = jnp.asarray(1e4 if x.ndim == 3 else 100, x.dtype)
        own = jnp.where(hidden.reshape(len(hidden), 1, places, *(x.ndim - 3) * [1]), garbage, x)
        return jnp.stack([jnp.full_like(own, garbage), own, jnp.full_like(own, garbage)])

    start, count = jnp.asarray(start, jnp.int32), jnp.asarray(count, jnp.int32)
    return q, k, v, Cached.of(jax.tree.map(stacked, entries), start, count, layer=1)


def oracle(q, k, v, cached, window=None, scale=None, cap=None):
    """One query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    old = cached.ring()
    keys, values = (np.asarray(x.astype(jnp.float32), np.float64) for x in (old.k, old.v))
    if old.k_scale is not None:
        keys, values = keys * np.asarray(old.k_scale)[..., None], values * np.asarray(old.v_scale)[..., None]
    start, count, places = np.asarray(cached.start), np.asarray(cached.count), keys.shape[2]
    out = np.zeros(q.shape)
    for b, s, n in np.ndindex(q.shape[:3]):
        own = n // (q.shape[2] // k.shape[2])
        old = [(start[b] + i) % places for i in range(count[b])]
        all_k = np.concatenate([keys[b, own, old], k[b, : s + 1, own]])
        all_v = np.concatenate([values[b, own, old], v[b, : s + 1, own]])
        all_k, all_v = (x[len(x) - min(len(x), window or len(x)) :] for x in (all_k, all_v))
        scores = all_k @ q[b, s, n] * (scale or 1 / np.sqrt(q.shape[3]))
        scores = np.tanh(scores / cap) * cap if cap else scores
        weights = np.exp(scores - scores.max())
        out[b, s, n] = weights @ all_v / weights.sum()
    return out


def check(impl: str, shape: Shape, kv: str, start, count, new: int = 1, seed: int = 0, **options) -> None:
    given = inputs(shape, kv, start, count, DTYPE.get(impl, jnp.float32), new, seed)
    found = np.asarray(attend(impl, *given, **options).astype(jnp.float32))
    assert found.shape == given[0].shape
    options.pop("tiling", None)
    np.testing.assert_allclose(found, oracle(*given, **options), atol=TOLERANCE[impl])


@pytest.mark.parametrize("impl", EVERY)
@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("name", ["llama-8b", "llama-1b", "gemma2-9b, window"])
def test_values(name, kv, impl):
    """A full row, one that wraps around the end, and one of nothing but its new token."""
    shape = SHAPES[name].scaled()
    check(impl, shape, kv, [0, 300, 17], [shape.places, 200, 0], window=shape.window, cap=shape.cap)


@pytest.mark.parametrize("impl", EVERY)
@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"llama-8b", "llama-1b", "gemma2-9b, window"}))
def test_values_of_other_shapes(name, impl):
    shape = SHAPES[name].scaled(heads=4, places=136)
    check(impl, shape, "int8", [130, 7, 64], [20, 100, 1], window=shape.window, cap=shape.cap, seed=1)


@pytest.mark.parametrize("impl", EVERY)
@pytest.mark.parametrize("options", [dict(window=1), dict(window=2), dict(window=150), dict(scale=0.3), dict(cap=1.5)])
def test_windows_scales_and_caps(options, impl):
    check(impl, Shape(4, 6, 2, 64, 200), "int8", [0, 150, 199, 33], [200, 170, 1, 64], seed=2, **options)


@pytest.mark.parametrize("impl", EVERY)
@pytest.mark.parametrize("kv", KINDS)
def test_many_query_heads_to_a_key(kv, impl):
    """Two and three eights of columns in the matrix unit, the last of them filled up."""
    for heads, size in ((32, 128), (42, 64)):
        check(impl, Shape(3, heads, 2, size, 200), kv, [0, 150, 30], [200, 70, 0], seed=3)


@pytest.mark.parametrize("impl", EVERY)
def test_any_stretch_of_the_ring(impl):
    """Of 200 places, which no block divides: the last is begun only."""

    @settings(max_examples=15, derandomize=True)
    @given(
        st.lists(st.tuples(st.integers(0, 199), st.integers(0, 200)), min_size=3, max_size=3),
        st.sampled_from([None, 1, 70]),
        st.sampled_from(["model", "int8"]),
    )
    def law(rows, window, kv):
        start, count = zip(*rows, strict=True)
        check(impl, Shape(3, 4, 2, 64, 200), kv, start, count, window=window)

    law()


@settings(max_examples=300, derandomize=True)
@given(st.data(), st.integers(1, 40), st.integers(1, 16))
def test_blocks_of_a_row_are_those_in_which_it_sees_something(data, places, block):
    start, number = data.draw(st.integers(0, places - 1)), data.draw(st.integers(0, places))
    ring = jnp.zeros((1, 1, 1, places, 1))
    cached = Cached(ring, ring, jnp.asarray([start]), jnp.asarray([number]), layer=7)
    first, blocks, layer = map(int, blocks_of(cached, None, block)[0, 2:])
    assert layer == 7
    whole = -(-places // block)
    visible = [(start + i) % places // block for i in range(number)]
    assert sorted((first + i) % whole for i in range(blocks)) == sorted(set(visible)), "each once"
    if number:
        assert first == visible[0]


def test_what_is_seen_through_a_window():
    ring = jnp.zeros((1, 3, 1, 10, 4))
    cached = Cached(ring, ring, jnp.array([0, 8, 8]), jnp.array([10, 5, 0]))
    for window, wanted in [(None, ([0, 8, 8], [10, 5, 0])), (4, ([7, 0, 8], [3, 3, 0])), (1, ([0, 3, 8], [0, 0, 0]))]:
        assert tuple(x.tolist() for x in seen(cached, window)) == wanted


@pytest.mark.parametrize("impl", KERNELS)
def test_blocks_out_of_sight_are_not_looked_at(impl):
    """Not a number may stand in them."""
    shape = Shape(2, 4, 2, 128, 512)
    dtype = DTYPE.get(impl, jnp.float32)
    q, k, v, cached = inputs(shape, "model", [260, 500], [60, 30], dtype)
    wanted = oracle(q, k, v, cached)
    unseen = np.ones((2, 512), bool)
    unseen[0, 256:384] = unseen[1, 384:] = unseen[1, :128] = False
    hole = jnp.asarray(unseen)[:, None, :, None]
    cached = cached.replace(k=jnp.where(hole, jnp.nan, cached.k), v=jnp.where(hole, jnp.nan, cached.v))
    found = attend(impl, q, k, v, cached).astype(jnp.float32)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE[impl])


@pytest.mark.parametrize("impl", KERNELS)
def test_large_scores_and_zeros_stay_finite(impl):
    shape = Shape(2, 4, 2, 64, 128)
    q, k, v, cached = inputs(shape, "int8", [0, 0], [128, 1], DTYPE.get(impl, jnp.float32))
    for factor in (0.0, 1e4):
        out = attend(impl, factor * q, k, v, cached)
        assert np.all(np.isfinite(np.asarray(out.astype(jnp.float32))))
        np.testing.assert_allclose(
            out.astype(jnp.float32), oracle(factor * q, k, v, cached), atol=0.02 if factor == 0.0 else 0.2
        )


@pytest.mark.parametrize("impl", ["xla", "reference"])
@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("window", [None, 3])
def test_several_new_tokens_see_each_other_backwards(window, kv, impl):
    check(impl, Shape(2, 4, 2, 8, 20), kv, [15, 3], [12, 0], new=5, window=window)


@pytest.mark.parametrize("impl", implementations("pallas_gpu", "pallas_tpu", "xla"))
@pytest.mark.parametrize("kv", KINDS)
def test_sixteen_bits_are_as_good_as_plain_attention_of_them(kv, impl):
    """The error of a kernel, in rms, is about that of XLA's products of the same numbers, or less."""
    given = inputs(Shape(3, 8, 2, 128, 384), kv, [0, 300, 17], [384, 200, 3], jnp.bfloat16)
    wanted = oracle(*given)
    found, plain = (np.asarray(attend(name, *given).astype(jnp.float32)) for name in (impl, "xla"))
    error, of_plain = (np.sqrt(np.mean((x - wanted) ** 2)) for x in (found, plain))
    assert error < 1.1 * of_plain + 1e-4 and attend(impl, *given).dtype == jnp.bfloat16


def kernel(window=None, cap=None):
    """The TPU's kernel, interpreted, as part of a program."""

    def run(q, k, v, cached):
        return pallas_tpu.attend(q, k, v, cached, window, q.shape[-1] ** -0.5, cap, pallas_tpu.Tiling(), interpret=True)

    return run


@pytest.mark.parametrize("kv", ["model", "int8"])
def test_gradients_are_the_references(kv):
    q, k, v, cached = inputs(Shape(2, 4, 2, 64, 128), kv, [0, 100], [128, 60])

    def through(attend):
        return jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v))), (0, 1, 2))(q, k, v)

    found = through(lambda q, k, v: served(kernel(20, 2.0), q, k, v, cached, 20, 64**-0.5, 2.0))
    wanted = through(lambda q, k, v: decode_attention(q, k, v, cached, window=20, cap=2.0, impl="reference"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), found, wanted)
    assert all(np.any(np.abs(x) > 1e-3) for x in found)


@pytest.mark.parametrize("kv", ["model", "int8"])
def test_every_device_works_on_its_own_rows_and_heads(kv):
    shape = Shape(4, 8, 2, 64, 128)
    given = inputs(shape, kv, [0, 100, 3, 7], [128, 60, 0, 1])
    alone = kernel()(*given)
    with jax.set_mesh(make_mesh(MeshShape(data=2, fsdp=2, tensor=2))):
        spread = jax.jit(lambda *given: served(kernel(), *given, None, 64**-0.5, None))(*given)
    np.testing.assert_allclose(spread, alone, atol=1e-6)
    assert len(spread.sharding.device_set) == 8


def refused(impl: str, shape: Shape, kv: str = "int8", dtype=jnp.bfloat16, new: int = 1) -> str:
    rows = shape.rows * [0]
    with pytest.raises(Unsupported) as why:
        decode_attention(*inputs(shape, kv, rows, rows, dtype, new), impl=impl)
    return str(why.value)


def test_where_they_run():
    shape = Shape(1, 2, 1, 64, 64)
    if not GPU:
        assert refused("pallas_gpu", shape) == "needs an NVIDIA GPU"
    assert refused("pallas_tpu", shape) == "needs a TPU"
    given = inputs(shape, "int8", [0], [64])
    np.testing.assert_array_equal(
        decode_attention(*given), decode_attention(*given, impl="pallas_gpu" if GPU else "xla")
    )
    assert list(IMPLEMENTATIONS) == ["pallas_gpu", "pallas_tpu", "xla", "reference"]


@pytest.mark.parametrize(
    "impl, options, reason",
    [
        ("pallas_gpu", dict(shape=Shape(1, 2, 1, 64, 64), new=2), "serves one new token a row, not 2"),
        ("pallas_gpu", dict(shape=Shape(1, 2, 1, 64, 64), dtype=jnp.float32), "computes in 16 bits, not in float32"),
        ("pallas_gpu", dict(shape=Shape(1, 2, 1, 80, 64)), "head size 80 is not 64, 128 or 256"),
        ("pallas_gpu", dict(shape=Shape(1, 2, 1, 64, 63)), "63 places are not a multiple of 8 from 64 on"),
        ("pallas_gpu", dict(shape=Shape(1, 2, 1, 64, 56)), "56 places are not a multiple of 8 from 64 on"),
        ("pallas_gpu", dict(shape=Shape(1, 33, 1, 64, 64)), "more than 32 query heads to a key/value head"),
        ("pallas_tpu", dict(shape=Shape(1, 2, 1, 64, 64), new=2), "serves one new token a row, not 2"),
        ("pallas_tpu", dict(shape=Shape(1, 2, 1, 80, 64)), "head size 80 is not 64, 128, 192 or 256"),
    ],
)
def test_what_they_cannot_serve_they_refuse_with_the_reason(monkeypatch, impl, options, reason):
    monkeypatch.setattr(pallas_gpu, "check_hopper", lambda: None)
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    assert refused(impl, **options) == reason


def test_heads_that_a_mesh_cannot_cut_are_refused(monkeypatch):
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    with jax.set_mesh(make_mesh(MeshShape(fsdp=2, tensor=4))):
        why = refused("pallas_tpu", Shape(2, 8, 2, 64, 64))
    assert why == "2 key/value heads cannot be cut 4 ways like their query heads"


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("name", ["llama-8b", "llama-8b, few rows", "llama-1b", "gemma2-9b, window"])
def test_the_gpu_kernel_is_built_for_a_gpu_that_is_not_here(name, kv):
    """As far as it goes without one: to the custom call."""
    if jax.__version_info__ < (0, 11):
        pytest.skip("pallas_gpu: needs jax 0.11")
    shape = SHAPES[name].scaled(heads=8, places=512)
    given = inputs(shape, kv, [0, 3, 500], [512, 100, 0], jnp.bfloat16)
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("fsdp",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        tiling = pallas_gpu.untuned(given[-1])
        call = functools.partial(pallas_gpu.attend, window=shape.window, scale=0.1, cap=shape.cap, tiling=tiling)
        assert "mosaic_gpu" in jax.jit(call).trace(*given).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("places, tile", [(2048, 128), (192, 64), (64, 64), (200, 128), (72, 64), (128, 128)])
def test_tiles_of_the_gpu_kernel(places, tile):
    assert pallas_gpu.fitting(128, places) == tile


def test_splits_of_the_gpu_kernel():
    tiling = pallas_gpu.Tiling()
    assert [pallas_gpu.splits(tiling, rows, 16) for rows in (1, 8, 64, 264, 2048)] == [16, 16, 4, 1, 1]
    assert pallas_gpu.splits(pallas_gpu.Tiling(splits=3), 2048, 2) == 2
    with pytest.raises(ValueError, match="places are 64, 128, 192 or 256"):
        pallas_gpu.Tiling(places=100)


@pytest.mark.parametrize(
    "most, kv_heads, places, wanted",
    [
        (8192, 8, 2048, (8, 1024)),
        (8192, 8, 512, (8, 512)),
        (8192, 8, 1000, (8, 1000)),
        (8192, 8, 1500, (8, 1024)),
        (8192, 8, 1920, (8, 640)),
        (1024, 32, 4096, (8, 128)),
        (128, 2, 200, (2, 128)),
    ],
)
def test_blocks_of_the_tpu_kernel(most, kv_heads, places, wanted):
    assert pallas_tpu.fitting(most, kv_heads, places) == wanted


def test_each_implementation_ran(chosen, alone):
    """The last test: what it counts ran above."""
    counts = {name: sum(case.endswith((f"-{name}]", f"[{name}]")) for case in chosen) for name in IMPLEMENTATIONS}
    assert min(counts.values()) >= 15, counts
    if alone:
        assert set(RAN) == set(IMPLEMENTATIONS) - (set() if GPU else {"pallas_gpu"})
        assert all(RAN[name] >= counts[name] for name in RAN), RAN
