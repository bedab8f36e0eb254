# SPDX-License-Identifier: Apache-2.0
"""Products with quantised matrices against float64, for every implementation and format: values and gradients."""

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.faults import Fault
from jaxpost.kernels import devices
from jaxpost.kernels.dispatch import Unsupported, forced
from jaxpost.kernels.quant_matmul import MOST_TOKENS, pallas_gpu, pallas_tpu, quant_fused, quant_matmul, reference
from jaxpost.kernels.quant_matmul.api import IMPLEMENTATIONS
from jaxpost.kernels.quant_matmul.shapes import MATRICES, TOKENS
from jaxpost.quant import Fp8, Int4, Int8, Nf4, QArray, dequantise
from jaxpost.shard.aot import topology
from tests.jaxprs import equations

FORMATS = {
    "int8": Int8(),
    "int4": Int4(),
    "int4 by 32": Int4(group=32),
    "int4 by 128": Int4(group=128),
    "nf4": Nf4(),
    "nf4 once": Nf4(double=False),
}
USUAL = ("int8", "int4", "nf4")
ROUNDED = 6e-3
"""How far a result in bf16 may be off, as a share of the whole: numbers (2^-9 each), blocks' scales and the result are
rounded once, which gives 1.7e-3 to 3.1e-3."""

RUN = {
    "pallas_gpu": functools.partial(quant_matmul, impl="pallas_gpu"),
    "pallas_tpu": forced(interpreted=True)(functools.partial(quant_matmul, impl="pallas_tpu")),
    "reference": reference.quant_matmul,
}


def scaled(size: int) -> int:
    return max(256, size // 8)


def case_list() -> list[tuple[str, str, str, int]]:
    """Every matrix in every format, with the numbers of tokens taking turns."""
    found = [(format, matrix) for format in USUAL for matrix in MATRICES]
    return [(impl, *one, TOKENS[i % len(TOKENS)]) for impl in RUN for i, one in enumerate(found)]


CASES = case_list()


@functools.cache
def matrix(format: str, inputs: int, outs: int) -> QArray:
    w = jax.random.normal(jax.random.key(inputs + outs), (inputs, outs)) * inputs**-0.5
    return QArray(*jax.jit(FORMATS[format].encode, static_argnums=(1, 2))(w, 1, 1), FORMATS[format])


def inputs_of(tokens: int, inputs: int, outs: int, dtype: Any = jnp.bfloat16) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(tokens), 3)
    x = jax.random.normal(keys[0], (tokens, inputs)).astype(dtype)
    low = jax.random.normal(keys[1], (inputs, 5)) * inputs**-0.5, jax.random.normal(keys[2], (5, outs))
    return x, low


def exact(x: Any, w: QArray, low: Any) -> np.ndarray:
    whole = np.asarray(dequantise(w), np.float64)
    if low is not None:
        whole = whole + np.asarray(low[0], np.float64) @ np.asarray(low[1], np.float64)
    return np.asarray(x, np.float64) @ whole


def off(found: Any, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape and found.dtype != np.float64
    return float(np.linalg.norm(np.asarray(found, np.float64) - wanted) / np.linalg.norm(wanted))


def on_its_device(impl: str) -> Any:
    if impl == "pallas_gpu" and jax.default_backend() != "gpu":
        pytest.skip("the kernel for Hopper runs on such a GPU only")
    return RUN[impl]


def test_every_implementation_is_tried():
    assert list(IMPLEMENTATIONS) == list(RUN)
    assert Counter(impl for impl, *_ in CASES) == {impl: 3 * 8 for impl in RUN}
    assert {tokens for *_, tokens in CASES} == set(TOKENS)


@pytest.mark.parametrize("impl, format, name, tokens", CASES)
def test_it_is_the_product_with_the_dequantised_matrix(impl, format, name, tokens):
    run = jax.jit(on_its_device(impl))
    sizes = tuple(map(scaled, MATRICES[name]))
    w = matrix(format, *sizes)
    x, low = inputs_of(tokens, *sizes)
    for factors in (None, low):
        y = run(x, w, factors)
        assert y.dtype == x.dtype
        assert off(y, exact(x, w, factors)) < ROUNDED


def test_the_tolerance_can_fail():
    """A scale or a code that is one place off is noticed."""
    w = matrix("int4", 512, 256)
    x, _ = inputs_of(8, 512, 256)
    scales = {"scale": jnp.roll(w.scales["scale"], 1, 0)}
    for wrong in (w.replace(scales=scales), w.replace(codes=jnp.roll(w.codes, 1, 1))):
        assert off(reference.quant_matmul(x, wrong), exact(x, w, None)) > 10 * ROUNDED


@settings(max_examples=6)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.integers(1, 40),
    st.sampled_from([1, 63, 64, 128, 200, 384]),
    st.sampled_from([1, 3, 128, 130]),
    st.booleans(),
    st.booleans(),
)
def test_any_size_is_served(format, tokens, inputs, outs, edited, fine):
    """The kernels refuse what they cannot serve; something serves everything."""
    w = matrix(format, inputs, outs)
    x, low = inputs_of(tokens, inputs, outs, jnp.float32 if fine else jnp.bfloat16)
    low = low if edited else None
    wanted = exact(x, w, low)
    slack = 1e-5 if fine else 2 * ROUNDED  # sums of few numbers: their own rounding does not average out
    assert off(quant_matmul(x, w, low), wanted) < slack
    try:
        found = RUN["pallas_tpu"](x, w, low)
    except Unsupported:
        assert fine or outs % 128 or w.codes.shape[0] % 128 or "by 32" not in format
    else:
        assert off(found, wanted) < slack


@pytest.mark.parametrize("impl", RUN)
@pytest.mark.parametrize("format", FORMATS)
def test_gradients_are_those_of_the_dequantised_matrix(impl, format):
    run = on_its_device(impl)
    if (format, impl) == ("int4 by 32", "pallas_gpu"):
        pytest.skip("the kernel for Hopper has no blocks of 32")
    w = matrix(format, 512, 256)
    x, low = inputs_of(9, 512, 256)
    upstream = jnp.sin(jnp.arange(9 * 256.0)).reshape(9, 256)

    def value(f, x, low, w):
        return jnp.sum(f(x, w, low).astype(jnp.float32) * upstream)

    found = jax.grad(value, (1, 2))(run, x, low, w)

    def plain(x, w, low):
        return x @ dequantise(w) + (x @ low[0]) @ low[1]

    wanted = jax.grad(value, (1, 2))(plain, x.astype(jnp.float32), low, w)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(b) > 1
        assert off(a, np.asarray(b, np.float64)) < 2 * ROUNDED  # the factors' gradients go through two roundings


def test_a_dequantised_matrix_is_not_kept_for_the_backward_pass():
    w = matrix("nf4", 512, 256)
    x, _ = inputs_of(9, 512, 256)
    for run in (RUN["reference"], RUN["pallas_tpu"]):
        _, pull = jax.vjp(lambda x, run=run: run(x, w), x)
        kept = [leaf for leaf in jax.tree.leaves(pull) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert all(leaf.size < 512 * 256 for leaf in kept)


REFUSED = {
    "65 tokens": (lambda x, w: (jnp.ones((65, 512), jnp.bfloat16), w), "pallas_gpu"),
    "257 tokens": (lambda x, w: (jnp.ones((MOST_TOKENS + 1, 512), jnp.bfloat16), w), "pallas_tpu"),
    "0 tokens": (lambda x, w: (x[:0], w), "both"),
    "float32 activations": (lambda x, w: (x.astype(jnp.float32), w), "both"),
    "weights as Fp8": (lambda x, w: (x, w.replace(format=Fp8())), "both"),
    "blocks of 32 inputs": (lambda x, w: (x, matrix("int4 by 32", 512, 256)), "pallas_gpu"),
    "a matrix of 512 x 192": (lambda x, w: (x, matrix("int8", 512, 192)), "pallas_gpu"),
    "a matrix of 64 x 256": (lambda x, w: (x, matrix("int4", 64, 256)), "pallas_gpu"),
    "codes of 512 x 192 bytes": (lambda x, w: (x, matrix("int8", 512, 192)), "pallas_tpu"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_says_why(why, monkeypatch):
    monkeypatch.setattr(pallas_gpu, "check_hopper", lambda: None)
    change, which = REFUSED[why]
    x, w = change(inputs_of(8, 512, 256)[0], matrix("int8", 512, 256))
    for module in {"pallas_gpu": [pallas_gpu], "pallas_tpu": [pallas_tpu], "both": [pallas_gpu, pallas_tpu]}[which]:
        with pytest.raises(Unsupported, match=why):
            module.check(x, w)


def test_blocks_that_would_not_fit_are_refused():
    codes, scale = (jax.ShapeDtypeStruct(*a) for a in (((8320, 128), jnp.uint8), ((260, 128), jnp.float32)))
    with pytest.raises(Unsupported, match="8320 rows of bytes cannot be cut by 256"):
        pallas_tpu.check(inputs_of(8, 512, 256)[0], QArray(codes, {"scale": scale}, Int4()))


def test_kernels_are_for_their_devices():
    x, w = inputs_of(8, 512, 256)[0], matrix("int8", 512, 256)
    with pytest.raises(Unsupported, match="needs a TPU"):
        quant_matmul(x, w, impl="pallas_tpu")
    if jax.default_backend() == "cpu":
        with pytest.raises(Unsupported, match="needs an NVIDIA GPU"):
            quant_matmul(x, w, impl="pallas_gpu")


def test_on_tpus_int8_is_left_to_xla(monkeypatch):
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    x, _ = inputs_of(8, 512, 256)
    with pytest.raises(Unsupported, match="read where it lies by XLA, and would be copied .*; ask for it by name"):
        jax.eval_shape(quant_fused, x, matrix("int8", 512, 256))
    for format, impl in (("int8", "pallas_tpu"), ("int4", None), ("nf4 once", None)):
        call = functools.partial(quant_matmul, w=matrix(format, 512, 256), impl=impl)
        assert "pallas_call" in str(jax.make_jaxpr(call)(x))


@pytest.mark.parametrize("name", ["v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
@pytest.mark.parametrize("format, edited", [("int8", True), ("int8", False), ("int4", False), ("nf4 once", True)])
def test_it_compiles_for_tpus(name, format, edited):
    try:
        devices = topology(name)[:1]
    except Fault as fault:
        pytest.skip(str(fault))
    mesh = jax.sharding.Mesh(np.array(devices), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    w, (x, low) = matrix(format, 512, 256), inputs_of(16, 512, 256)
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, P())),
        (x, w, low if edited else None),
    )
    with jax.set_mesh(mesh):
        compiled = jax.jit(functools.partial(quant_matmul, impl="pallas_tpu")).lower(*arguments).compile()
    assert f"quant_matmul_{format.split()[0]}" in compiled.as_text()


@pytest.mark.parametrize("format", USUAL)
def test_examples_with_factors_of_their_own_share_one_product(format):
    """As a bank of deltas maps it: the matrix is read once, not once for each example."""
    w, (x, _) = matrix(format, 256, 256), inputs_of(8, 256, 256)
    x = x.reshape(4, 2, 256)
    a, b = jax.random.normal(jax.random.key(1), (4, 256, 3)) / 16, jax.random.normal(jax.random.key(2), (4, 3, 256))
    each = jax.vmap(lambda x, a, b: RUN["pallas_tpu"](x, w, (a, b)))
    found = each(x, a, b)
    for i in range(4):
        assert off(found[i], exact(x[i], w, (a[i], b[i]))) < ROUNDED
    traced = jax.make_jaxpr(each)(x, a, b).jaxpr
    assert not [e for e in equations(traced) if e.primitive.name == "pallas_call"]
    assert [e for e in equations(jax.make_jaxpr(RUN["pallas_tpu"])(x[0], w).jaxpr) if e.primitive.name == "pallas_call"]
