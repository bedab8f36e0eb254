# SPDX-License-Identifier: Apache-2.0
"""Quantised weights as matrices, prepared for decoding, and met by few tokens where weights meet activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta
from jaxpost.delta.contract import Einsum
from jaxpost.kernels import quant_matmul as few
from jaxpost.kernels.quant_matmul import as_matrix, for_decoding, layout, pallas_gpu
from jaxpost.params import ParamSpec, constant
from jaxpost.quant import Fp8, Int4, Int8, Nf4, QArray, dequantise, quantise
from jaxpost.quant.nf4 import LEVELS
from jaxpost.shard import MeshShape, make_mesh

FORMATS = {"int8": Int8(), "int4": Int4(), "int4 whole": Int4(group=0), "nf4": Nf4(), "nf4 once": Nf4(double=False)}
SPECS = [
    ParamSpec((12, 6), ": d : f", constant(0)),
    ParamSpec((96, 2, 3), ": d : n h", constant(0)),
    ParamSpec((3, 50, 7), ": n h : d", constant(0)),
    ParamSpec((4, 33, 2, 5), ": n h : k q", constant(0)),
]


def weight(spec: ParamSpec, format: str) -> QArray:
    return quantise(jax.random.normal(jax.random.key(len(spec.shape)), spec.shape), spec, FORMATS[format])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.dims)
@pytest.mark.parametrize("format", FORMATS)
def test_as_a_matrix_it_is_the_same_weight(spec, format):
    w = weight(spec, format)
    flat = as_matrix(w)
    inputs = int(np.prod(spec.sizes(1)))
    np.testing.assert_array_equal(dequantise(flat), dequantise(w).reshape(inputs, -1))
    assert layout.sizes(flat) == (inputs, int(np.prod(spec.sizes(2))))
    assert flat.codes.size == w.codes.size and flat.codes.dtype == w.codes.dtype
    scales = layout.block_scales(flat)
    assert scales.dtype == jnp.float32 and scales.shape[0] == -(-inputs // layout.block(flat))


@pytest.mark.parametrize("format", FORMATS)
def test_prepared_for_decoding_it_is_the_same_weight(format):
    spec = ParamSpec((5, 96, 2, 3), "l : d : n h", constant(0))
    tree = {"w": weight(spec, format), "norm": jnp.ones(3)}
    ready = for_decoding(tree)
    np.testing.assert_array_equal(dequantise(ready["w"]), dequantise(tree["w"]))
    assert set(ready["w"].scales) <= {"scale", "absmax"}  # nothing is nested any more
    assert isinstance(ready["w"].format, type(tree["w"].format)) and ready["norm"] is tree["norm"]
    again = for_decoding(ready)
    assert jax.tree.structure(again) == jax.tree.structure(ready)

    def one(_, w):  # a layer scan strips the lead axis as before
        return None, dequantise(w)

    np.testing.assert_array_equal(jax.lax.scan(one, None, ready["w"])[1], dequantise(tree["w"]))


CASES = {
    "bsd,df->bsf": ((2, 3, 12), ": d : f", (12, 6)),
    "bsd,dnh->bsnh": ((2, 3, 96), ": d : n h", (96, 2, 3)),
    "bsnh,nhd->bsd": ((2, 1, 3, 50), ": n h : d", (3, 50, 7)),
}


@pytest.mark.parametrize("spec", CASES)
@pytest.mark.parametrize("format", FORMATS)
def test_few_tokens_meet_a_matrix(spec, format, monkeypatch):
    shape, dims, sizes = CASES[spec]
    w = weight(ParamSpec(sizes, dims, constant(0)), format)
    x = jax.random.normal(jax.random.key(1), shape)
    seen = []
    monkeypatch.setattr(few, "quant_fused", lambda *a: seen.append(a[0].shape) or few.quant_matmul(*a))
    y = delta.einsum(spec, x, w)
    np.testing.assert_allclose(y, jnp.einsum(spec, x, dequantise(w)), atol=1e-4)
    assert seen == [(shape[0] * shape[1], np.prod(shape[2:]))]


def test_the_factors_of_an_edit_come_along(monkeypatch):
    monkeypatch.setattr(few, "quant_fused", few.quant_matmul)
    w = weight(SPECS[2], "nf4")
    x = jax.random.normal(jax.random.key(1), (2, 1, 3, 50))
    a, b = jax.random.normal(jax.random.key(2), (3, 50, 4)), jax.random.normal(jax.random.key(3), (4, 7))
    y = delta.einsum("bsnh,nhd->bsd", x, delta.Bound(w, delta.LowRank(a, b / 2, jnp.asarray(2.0))))
    whole = dequantise(w) + jnp.einsum("nhr,rd->nhd", a, b)
    np.testing.assert_allclose(y, jnp.einsum("bsnh,nhd->bsd", x, whole), atol=1e-3)


def test_without_a_kernel_it_is_the_way_of_training_to_the_last_bit():
    w, x = weight(SPECS[0], "int8"), jax.random.normal(jax.random.key(1), (2, 3, 12))
    assert Einsum("bsd,df->bsf").in_few_bits(x, w) is None
    np.testing.assert_array_equal(delta.einsum("bsd,df->bsf", x, w), jnp.einsum("bsd,df->bsf", x, dequantise(w)))


ELSEWHERE = {
    "many tokens": ("bsd,df->bsf", (2, 129, 12), SPECS[0], Int8()),
    "no tokens": ("bsd,df->bsf", (2, 0, 12), SPECS[0], Int8()),
    "a transposed use": ("bsf,df->bsd", (2, 3, 6), SPECS[0], Int8()),
    "experts": ("ebd,edf->ebf", (2, 3, 12), ParamSpec((2, 12, 6), "e : d : f", constant(0)), Int8()),
    "another format": ("bsd,df->bsf", (2, 3, 12), SPECS[0], Fp8()),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_everything_else_goes_the_way_of_training(what, monkeypatch):
    spec, shape, of, format = ELSEWHERE[what]
    w = quantise(jax.random.normal(jax.random.key(0), of.shape), of, format)
    x = jax.random.normal(jax.random.key(1), shape)
    monkeypatch.setattr(few, "quant_fused", lambda *a: pytest.fail("it is not for this"))
    np.testing.assert_allclose(delta.einsum(spec, x, w), jnp.einsum(spec, x, dequantise(w)), atol=1e-4)


def on_two(axis, x, w, low=None):
    """The product on two devices along that axis of the mesh, under a low-rank edit if asked for."""
    bound = w if low is None else delta.Bound(w, delta.LowRank(*low, jnp.asarray(1.0)))
    with jax.set_mesh(make_mesh(MeshShape(**{"data": 1, "fsdp": 1, "tensor": 1, axis: 2}), jax.devices()[:2])):
        return jax.jit(lambda x, w: delta.einsum("bsd,df->bsf", x, w))(x, bound)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("edited", [False, True])
def test_each_device_multiplies_its_own_rows_by_the_kernel(monkeypatch, kind, edited):
    w, x = weight(SPECS[0], kind), jax.random.normal(jax.random.key(1), (4, 3, 12))
    low = [jax.random.normal(jax.random.key(2), size) for size in ((12, 2), (2, 6))] if edited else None
    asked = []

    def kernel(x, w, low):
        asked.append((x.shape, w.codes.ndim, None if low is None else low[0].shape))
        return few.quant_matmul(x, w, low, impl="reference")

    monkeypatch.setattr(few, "quant_fused", kernel)
    for axis in ("data", "fsdp"):
        whole = dequantise(w) + (low[0] @ low[1] if low else 0.0)
        np.testing.assert_allclose(on_two(axis, x, w, low), x @ whole, atol=1e-4)
    assert set(asked) == {((2 * 3, 12), 2, (12, 2) if edited else None)}


def test_rows_and_weights_that_come_in_pieces_go_the_way_of_training(monkeypatch):
    w, x = weight(SPECS[0], "int8"), jax.random.normal(jax.random.key(1), (3, 3, 12))
    monkeypatch.setattr(few, "quant_fused", lambda *a: pytest.fail("it is not for this"))
    for axis in ("fsdp", "tensor"):  # three rows for two devices; a weight of which each has half
        np.testing.assert_allclose(on_two(axis, x, w), jnp.einsum("bsd,df->bsf", x, dequantise(w)), atol=1e-4)


def test_pairs_of_levels_are_those_of_each_byte():
    from jaxpost.kernels.quant_matmul.hopper import pairs_of

    pairs = pairs_of(LEVELS).view(jnp.bfloat16).reshape(256, 2)
    rounded = np.asarray(LEVELS, jnp.bfloat16)
    for byte in range(256):
        assert tuple(pairs[byte]) == (rounded[byte >> 4], rounded[byte & 15])


@pytest.mark.parametrize("name", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("tokens", [8, 16, 32, 64])
def test_every_plan_fits(name, tokens):
    """In shared memory and on the chip, for the matrices that matter."""
    from jaxpost.kernels.quant_matmul import hopper
    from jaxpost.kernels.quant_matmul.shapes import MATRICES

    kind = hopper.Codes(name, 0 if name == "int8" else 64)
    for inputs, outs in MATRICES.values():
        plan = pallas_gpu.planned(pallas_gpu.Tunables(), kind, tokens, inputs, outs)
        blocks = outs // (128 * plan.groups) * plan.blocks
        assert outs % (128 * plan.groups) == 0 and inputs % kind.inputs(plan) == 0
        assert 1 <= plan.blocks <= inputs // kind.inputs(plan) and 2 <= plan.steps
        assert blocks <= pallas_gpu.AT_ONCE and hopper.shared_bytes(kind, plan, tokens) <= pallas_gpu.SHARED
