# SPDX-License-Identifier: Apache-2.0
"""The kernels for Hopper: interpreted on a CPU and, on a GPU, as they are, against the reference in float32."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import partial_eval

from jaxpost.kernels import devices
from jaxpost.kernels.attention import Rows, attention, pallas_gpu
from jaxpost.kernels.attention.reference import visible
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.models.remat import rematerialised
from tests.jaxprs import equations
from tests.kernels.attention.test_splash import distance, inputs, reference, rows_of, values_and_gradients
from tests.kernels.interpreter import NEEDED, interpreting

ON_GPU = pytest.mark.skipif(jax.default_backend() != "gpu", reason="pallas_gpu: its kernels run on a Hopper GPU only")
RAN: Counter[str] = Counter()

CASES = {
    "packed": dict(lengths=[[60, 70, 30], [128, 1, 120]]),
    "window": dict(lengths=[[200, 50]], window=40),
    "cap, heads of 128": dict(lengths=[[100, 99]], cap=2.0, size=128),
    "heads by threes": dict(lengths=[[150, 50]], heads=3, kv_heads=1),
    "no groups, scale": dict(lengths=[[256]], heads=2, kv_heads=2, scale=0.3),
    "half precision": dict(lengths=[[90, 100]], dtype=jnp.float16),
}
"""Cheap enough to be interpreted."""

LARGE = {
    "long": dict(lengths=[[600, 37, 700], [1100, 236]], tokens=1408, most=64),
    "one example a row": dict(lengths=[[1000], [1024]], tokens=1024, most=1),
    "window and cap": dict(lengths=[[600, 37, 700]], tokens=1408, window=200, cap=3.0, size=128),
    "window of one": dict(lengths=[[20], [3, 4]], tokens=128, window=1),
    "many heads to a key": dict(lengths=[[500, 130]], tokens=640, heads=16, kv_heads=1),
    "heads by sevens": dict(lengths=[[500, 130]], tokens=640, heads=14, kv_heads=2),
    "nothing but padding": dict(lengths=[[1], [300]], tokens=384),
}

TOLERANCE = {jnp.bfloat16: 5e-3, jnp.float16: 8e-4}
"""The norm of the error over the result's: what rounding weights, and results, to that type costs."""


def check(case, attend):
    options = {"dtype": jnp.bfloat16, "tokens": 256, "most": 3, **case}
    rows = rows_of(options.pop("lengths"), options.pop("most"), options.pop("tokens"))
    sizes = {name: options.pop(name) for name in ("heads", "kv_heads", "size", "dtype") if name in options}
    given = inputs(rows, **sizes)
    found = values_and_gradients(lambda *given: attend(*given, rows, **options), rows, *given)
    wanted = values_and_gradients(reference(rows, **options), rows, *(x.astype(jnp.float32) for x in given))
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        assert one.dtype == sizes["dtype"] and np.all(np.isfinite(one)), name
        if options.get("window") == 1 and name in ("dq", "dk"):  # one key: its weight is 1 whatever the score
            np.testing.assert_allclose(one, other, atol=3e-2)
        else:
            assert distance(one, other) < TOLERANCE[sizes["dtype"]], name


@NEEDED
@pytest.mark.parametrize("case", CASES)
def test_interpreted_values_and_gradients_are_the_references(monkeypatch, case):
    from jaxpost.kernels.attention import hopper, hopper_backward, hopper_forward

    monkeypatch.setattr(pallas_gpu, "check_hopper", lambda: None)
    with interpreting(monkeypatch, hopper, hopper_forward, hopper_backward):
        check(CASES[case], pallas_attention)
    RAN["interpreted"] += 1


@ON_GPU
@pytest.mark.parametrize("case", CASES | LARGE)
def test_values_and_gradients_on_a_gpu_are_the_references(case):
    check((CASES | LARGE)[case], pallas_attention)


def pallas_attention(q, k, v, rows, **options):
    return attention(q, k, v, rows, impl="pallas_gpu", **options)


@ON_GPU
def test_packed_rows_are_the_examples_alone_on_a_gpu():
    """To the bit: what a query sees is cut into the same tiles wherever its segment begins on one."""
    lengths = [128, 256, 128]
    q, k, v, _ = inputs(rows_of([lengths]), dtype=jnp.bfloat16)
    packed = pallas_attention(q, k, v, rows_of([lengths]))
    for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        alone = slice(start, start + length)
        own = pallas_attention(q[:, alone], k[:, alone], v[:, alone], rows_of([[length]], most=1))
        np.testing.assert_array_equal(packed[:, alone].astype(np.float32), own.astype(np.float32))


@ON_GPU
def test_gradients_on_a_gpu_are_the_same_every_time():
    rows = rows_of([[600, 37, 700]], tokens=1408)
    given = inputs(rows, dtype=jnp.bfloat16)
    attend = lambda *given: pallas_attention(*given, rows)  # noqa: E731
    first, second = (values_and_gradients(attend, rows, *given) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.astype(np.float32), other.astype(np.float32))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=2, max_size=2),
    st.none() | st.integers(1, 40) | st.just(2**31 - 1),
)
def test_sight_is_what_the_reference_sees(lengths, window):
    rows = rows_of(lengths, tokens=38)
    start, stop = (np.asarray(x) for x in pallas_gpu.sight(rows.segments, window))
    assert np.all(np.diff(start) >= 0) and np.all(np.diff(stop) >= 0), "the kernels find what to walk over by that"
    seen, real = np.asarray(visible(rows, window)), np.asarray(rows.segments) > 0
    place = np.arange(seen.shape[1])
    by_query = (place >= start[..., None]) & (place <= place[:, None])
    by_key = (place[:, None] < stop[:, None, :]) & (place <= place[:, None])
    for one in (by_query, by_key):
        np.testing.assert_array_equal(one[real], seen[real])
        np.testing.assert_array_equal(one[~real], np.broadcast_to(np.eye(len(place), dtype=bool), seen.shape)[~real])


def block(x, weights):
    """What a decoder does around attention, as far as remat is concerned."""
    rows = rows_of([[60, 68]])
    q, k, v = (checkpoint_name(x[..., None, :] * w, "qkv") for w in weights[:, None, None, None])
    return x + pallas_attention(q, k, v, rows)[:, :, 0]


@NEEDED
@pytest.mark.parametrize("remat, calls", [("none", 3), ("most", 3), ("result", 3), ("full", 4)])
def test_keeping_attention_keeps_it_from_running_again(monkeypatch, remat, calls):
    monkeypatch.setattr(pallas_gpu, "check_hopper", lambda: None)

    def loss(weights, x):
        return jnp.sum(rematerialised(block, remat)(x, weights).astype(jnp.float32) ** 2)

    weights, x = jnp.ones((3, 64), jnp.bfloat16), jnp.ones((1, 128, 64), jnp.bfloat16)
    traced = jax.make_jaxpr(jax.grad(loss))(weights, x).jaxpr
    traced, _ = partial_eval.dce_jaxpr(traced, [True])  # what nobody reads, the compiler drops
    assert sum(e.primitive.name == "mpmd_map" for e in equations(traced)) == calls


def call(impl=None, dtype=jnp.bfloat16, values=None, size=64, most=2, tokens=128, scale=None):
    q, kv = jnp.ones((1, tokens, 2, size), dtype), jnp.ones((1, tokens, 1, size), dtype)
    rows = Rows(jnp.ones((1, tokens), jnp.int32), jnp.arange(tokens)[None], most)
    return attention(q, kv, kv.astype(values or dtype), rows, scale=scale, impl=impl)


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(dtype=jnp.float32), "computes in 16 bits of one kind, not in float32, float32 and float32"),
        (dict(values=jnp.float32), "not in bfloat16, bfloat16 and float32"),
        (dict(scale=0.0), "takes scales above zero, not 0.0"),
        (dict(scale=-0.2), "takes scales above zero, not -0.2"),
        (dict(size=256), "head size 256"),
        (dict(tokens=120), "120 tokens are not a multiple of 128"),
        (dict(most=None), "the number of segments in a row is not known"),
    ],
)
def test_what_it_cannot_serve_it_refuses_with_the_reason(monkeypatch, options, reason):
    monkeypatch.setattr(pallas_gpu, "check_hopper", lambda: None)
    with pytest.raises(Unsupported, match=reason):
        call("pallas_gpu", **options)


def test_it_needs_a_hopper_gpu(monkeypatch):
    monkeypatch.setattr(devices, "platform", lambda: "gpu")
    monkeypatch.setattr(devices, "device_kind", lambda: "NVIDIA A100-SXM4-80GB")
    with pytest.raises(Unsupported, match="is for Hopper GPUs, not for NVIDIA A100"):
        call("pallas_gpu")


def test_as_many_cases_ran_as_there_are(chosen, alone):
    """A case that silently does not run is no case."""
    interpreted = sum(name.startswith("test_interpreted") for name in chosen)
    assert interpreted == len(CASES) == 6
    if alone:
        assert RAN["interpreted"] == (interpreted if jax.__version_info__ >= (0, 11) else 0)
