# SPDX-License-Identifier: Apache-2.0
"""Every implementation of a product with a low-rank one beside it, against float64: values and all gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import delta, shard
from jaxpost.delta import LowRank
from jaxpost.faults import Fault
from jaxpost.kernels import devices
from jaxpost.kernels.dispatch import Unsupported
from jaxpost.kernels.lowrank_matmul import gradient, lowrank_fused, lowrank_matmul, pallas_gpu, pallas_tpu, reference
from jaxpost.kernels.lowrank_matmul.api import IMPLEMENTATIONS
from jaxpost.kernels.lowrank_matmul.shapes import SHAPES, Shape
from jaxpost.params import ParamSpec, normal
from jaxpost.quant import Int8, Nf4, dequantise, quantise
from jaxpost.shard import aot
from tests.jaxprs import equations, products

FORMS = {
    "pallas_gpu": functools.partial(lowrank_matmul, impl="pallas_gpu"),
    "pallas_tpu": lambda x, w, a, b: gradient.fused(functools.partial(pallas_tpu.product, interpret=True), x, w, a, b),
    "plain": lambda x, w, a, b: gradient.fused(gradient.plain, x, w, a, b),
    "reference": reference.lowrank_matmul,
}
"""The implementations as this host can run them, and the shared gradient over plain products."""

# A bf16 result is rounded to 2^-8 of itself, s before; float32 sums of some hundred terms are good to 1e-6.
ROOM = {"float32": 2e-6, "bfloat16": 6e-3}


def on_this_host(name):
    if name == "pallas_gpu" and jax.default_backend() != "gpu":
        pytest.skip("pallas_gpu: the kernel runs on Hopper GPUs only, and this host has none")
    return FORMS[name]


def arrays(shape, dtype, seed=0, factors=jnp.float32):
    rng = np.random.default_rng(seed)
    t, i, o, r = shape
    x, w, dy = rng.normal(size=(t, i)), rng.normal(size=(i, o)) / i**0.5, rng.normal(size=(t, o))
    a, b = rng.normal(size=(i, r)) / i**0.5, rng.normal(size=(r, o))
    x, w, dy = (jnp.asarray(v, dtype) for v in (x, w, dy))
    return x, w, jnp.asarray(a, factors), jnp.asarray(b, factors), dy


def exact(x, w, a, b, dy):
    """The result and the gradients of all four, in float64, of factors rounded to x's type."""
    a, b = a.astype(x.dtype), b.astype(x.dtype)
    x, w, a, b, dy = (np.asarray(v.astype(jnp.float32), np.float64) for v in (x, w, a, b, dy))
    whole = w + a @ b
    return x @ whole, (dy @ whole.T, x.T @ dy, x.T @ (dy @ b.T), (x @ a).T @ dy)


def off(found, want, size=None):
    """How far off, as a share of the norm of what is right, or of sums of which that may be the small difference."""
    found = np.asarray(jnp.asarray(found, jnp.float32), np.float64)
    assert found.shape == want.shape
    return np.linalg.norm(found - want) / np.linalg.norm(want if size is None else size)


def value_and_gradients(f, x, w, a, b, dy):
    y, pull = jax.vjp(f, x, w, a, b)
    return y, pull(dy)


def check(f, shape, dtype, seed=0, few=False):
    x, w, a, b, dy = arrays(shape, dtype, seed)
    y, gradients = jax.jit(functools.partial(value_and_gradients, f))(x, w, a, b, dy)
    want, wanted = exact(x, w, a, b, dy)
    size, sizes = exact(*map(jnp.abs, (x, w, a, b, dy))) if few else (None, (None,) * 4)
    assert y.dtype == x.dtype and [g.dtype for g in gradients] == [v.dtype for v in (x, w, a, b)]
    assert off(y, want, size) < ROOM[dtype]
    for name, found, right, most in zip("xwab", gradients, wanted, sizes, strict=True):
        assert off(found, right, most) < ROOM[dtype], name


def small(shape):
    """A shape of real use, an eighth of it each way at least, as the blocks of kernels allow."""
    return Shape(256, max(256, shape.i // 16), max(256, shape.o // 16), shape.r)


CASES = [(name, shape) for name in FORMS for shape in SHAPES]


@pytest.mark.parametrize("name, shape", CASES)
def test_real_shapes(name, shape):
    f = on_this_host(name)
    check(f, SHAPES[shape] if name == "pallas_gpu" else small(SHAPES[shape]), "bfloat16")


def test_every_implementation_is_tried_at_every_shape():
    assert set(IMPLEMENTATIONS) | {"plain"} == set(FORMS) and list(IMPLEMENTATIONS)[-1] == "reference"
    assert len(CASES) == 4 * len(SHAPES) == 32


@pytest.mark.parametrize("name", ["plain", "reference"])
@settings(max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 99),
)
def test_any_shape(name, shape, dtype, seed):
    check(FORMS[name], shape, dtype, seed, few=True)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("blocks", [(128, 128, 128), (256, 384, 128), (512, 768, 256)])
@pytest.mark.parametrize("rank", [1, 16])
def test_a_tpus_blocks_of_any_size(across, blocks, rank):
    x, w, a, b, _ = arrays(Shape(512, 256, 768, rank), "bfloat16", 1, jnp.bfloat16)
    y, s = pallas_tpu.blocked(x, w.T if across else w, a.T, b, across, pallas_tpu.Blocks(*blocks), True)
    want, _ = exact(x, w, a, b, x @ w)
    assert off(y, want) < ROOM["bfloat16"]
    assert off(s, np.asarray(x, np.float64) @ np.asarray(a, np.float64)) < ROOM["bfloat16"]


@pytest.mark.parametrize("rank", [1, 16, 50, 64])
def test_hopper_any_rank(rank):
    check(on_this_host("pallas_gpu"), Shape(8448, 1280, 1024, rank), "bfloat16", rank)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("rank", [16, 48])
def test_hopper_interpreted(monkeypatch, across, rank):
    """The kernel's body on a CPU: one pair of blocks, which has several rows of tiles and need not wait for others. The
    interpreter knows no semaphores, so they are left out."""
    if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 11):
        pytest.skip("pallas_gpu: interpreting it needs jax 0.11")
    from jax.experimental.pallas import mosaic_gpu

    from jaxpost.kernels.lowrank_matmul import hopper

    class Nothing:
        def __getattr__(self, name):
            return self

        def __getitem__(self, index):
            return self

    for name in ("get_global", "semaphore_wait", "semaphore_signal"):
        monkeypatch.setattr(hopper.pl, name, lambda *args, **kwargs: Nothing())
    x, w, a, b, _ = arrays(Shape(768, 192, 512, rank), "bfloat16", rank, jnp.bfloat16)
    tiles = pallas_gpu.default(hopper.Tiles, rank)
    with mosaic_gpu.force_gpu_interpret_mode():  # pyright: ignore[reportAttributeAccessIssue]
        y, s = hopper.lowrank(x, w.T if across else w, a.T, b, across, tiles, 2)
    assert off(y, exact(x, w, a, b, jnp.zeros_like(y))[0]) < ROOM["bfloat16"]
    assert off(s, np.asarray(x, np.float64) @ np.asarray(a, np.float64)) < ROOM["bfloat16"]


def test_hopper_again_and_again():
    """Blocks wait for each other: what comes out must not depend on who is first."""
    f = on_this_host("pallas_gpu")
    x, w, a, b, dy = arrays(SHAPES["1b key"], "bfloat16", 3)
    run = jax.jit(functools.partial(value_and_gradients, f))
    first = jax.tree.map(np.asarray, run(x, w, a, b, dy))
    for _ in range(20):
        jax.tree.map(np.testing.assert_array_equal, first, jax.tree.map(np.asarray, run(x, w, a, b, dy)))


@pytest.mark.parametrize("format", [Int8(), Nf4()], ids=["int8", "nf4"])
@pytest.mark.parametrize("name", ["plain", "reference", "pallas_tpu"])
def test_a_quantised_weight_is_its_dequantised_self(name, format):
    x, w, a, b, dy = arrays(Shape(256, 256, 256, 4), "bfloat16")
    spec = ParamSpec((4, 64, 256), ": n h : d", normal(1.0))
    q = quantise(w.astype(jnp.float32).reshape(4, 64, 256), spec, format)
    run = jax.jit(lambda w: jax.vjp(lambda x, a, b: FORMS[name](x, w, a, b), x, a, b)[1](dy))
    for found, want in zip(run(q), run(dequantise(q, jnp.bfloat16)), strict=True):
        assert off(found, np.asarray(want, np.float64)) < 1e-6


def test_a_quantised_weight_is_kept_as_codes():
    x, w, a, b, _ = arrays(Shape(8, 256, 256, 4), "float32")
    q = quantise(w, ParamSpec((256, 256), ": d : f", normal(1.0)), Int8())
    for name in ("plain", "reference"):
        _, pull = jax.vjp(lambda x, name=name: FORMS[name](x, q, a, b), x)
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) < 1.5 * w.size, name


@pytest.mark.parametrize("of, count", [((0,), 6), ((2, 3), 6), ((0, 2, 3), 8), ((3,), 5), ((2,), 5), ((0, 1, 2, 3), 9)])
def test_what_nobody_differentiates_costs_nothing(of, count):
    x, w, a, b, dy = arrays(Shape(4, 5, 6, 2), "float32")

    def loss(*args):
        return jnp.sum(FORMS["plain"](*args) * dy)

    # Three of them forwards. For b alone dy b^T is written down too, and dropped by whoever compiles it.
    assert len(products(jax.grad(loss, of), x, w, a, b)) == count


def test_under_its_name_what_is_kept_is_not_made_again():
    x, w, a, b, dy = arrays(Shape(4, 5, 6, 2), "float32")

    def made(policy):
        f = jax.checkpoint(lambda x, a, b: jnp.sum(FORMS["plain"](x, w, a, b) * dy), policy=policy)
        return len(products(jax.grad(f, (0, 1, 2)), x, a, b))

    policies = jax.checkpoint_policies
    assert made(policies.nothing_saveable) == 9 and made(policies.save_only_these_names(gradient.KEPT)) == 8


def test_under_vmap_the_base_stays_one_product():
    x, w, a, b, _ = arrays(Shape(256, 256, 256, 2), "bfloat16")
    xs, as_, bs = (jnp.stack([v, 2 * v, -v]) for v in (x, a, b))
    f = FORMS["pallas_tpu"]
    found = jax.vmap(f, (0, None, 0, 0))(xs, w, as_, bs)
    for k in range(3):
        want, _ = exact(xs[k], w, as_[k], bs[k], x)
        assert off(found[k], want) < ROOM["bfloat16"]
    traced = jax.make_jaxpr(jax.vmap(f, (0, None, 0, 0)))(xs, w, as_, bs).jaxpr
    assert not [e for e in equations(traced) if e.primitive.name == "pallas_call"]


def test_elsewhere_nothing_is_faster():
    x, w, a, b, _ = arrays(Shape(4, 5, 6, 2), "float32")
    with pytest.raises(Unsupported, match="no implementation serves this input"):
        lowrank_fused(x, w, a, b)
    for name, why in (("pallas_gpu", "needs an NVIDIA GPU"), ("pallas_tpu", "needs a TPU")):
        if jax.default_backend() == "cpu":
            with pytest.raises(Unsupported, match=why):
                lowrank_matmul(x, w, a, b, name)
    with pytest.raises(Fault, match="no implementation 'palas_gpu'"):
        lowrank_matmul(x, w, a, b, "palas_gpu")


@pytest.mark.parametrize(
    "shape, dtype, why",
    [
        (Shape(8192, 2048, 2048, 16), "float32", "16 bits"),
        (Shape(8192, 2048, 2048, 65), "bfloat16", "rank 65"),
        (Shape(8200, 2048, 2048, 16), "bfloat16", "multiples"),
        (Shape(8192, 2048, 2176, 16), "bfloat16", "multiples"),
        (Shape(512, 2048, 2048, 16), "bfloat16", "too few tiles"),
    ],
)
def test_what_the_hopper_kernel_cannot_serve(monkeypatch, shape, dtype, why):
    for name, value in (("check_hopper", None), ("cores", 132)):
        monkeypatch.setattr(pallas_gpu, name, lambda value=value: value)
    t, i, o, r = shape
    whole = [jax.ShapeDtypeStruct(size, dtype) for size in ((t, i), (i, o), (i, r), (r, o))]
    with pytest.raises(Unsupported, match=why):
        jax.eval_shape(pallas_gpu.lowrank_matmul, *whole)


@pytest.mark.parametrize(
    "shape, inputs, freely",
    [
        ((512, 768), 512, True),
        ((512, 4, 128), 512, True),
        ((4, 128, 512), 512, True),
        ((512, 8, 64), 512, False),
        ((8, 64, 512), 512, False),
        ((2, 256, 4, 192), 512, False),
        ((512, 1, 4, 128), 512, True),
    ],
)
def test_on_tpus_axes_that_are_padded_are_not_merged_unasked(monkeypatch, shape, inputs, freely):
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    assert pallas_tpu.merges_freely(shape, inputs) == freely
    sizes = ((256, inputs), shape, (inputs, 4), (4, math.prod(shape) // inputs))
    whole = [jax.ShapeDtypeStruct(size, "bfloat16") for size in sizes]
    for call, served in ((lowrank_fused, freely), (functools.partial(lowrank_matmul, impl="pallas_tpu"), True)):
        try:
            assert "pallas_call" in str(jax.make_jaxpr(call)(*whole)) and served
        except Unsupported as why:
            assert not served and "numbers are padded, so that merging them is a copy; ask for it by name" in str(why)


@pytest.mark.parametrize("kind", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiles_for_tpus(kind, uncached):
    try:
        devices = aot.topology(kind)
    except Fault as fault:
        pytest.skip(f"compiling for {kind}: {fault}")
    mesh = jax.sharding.Mesh(np.asarray(devices[:1]), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    t, i, o, r = SHAPES["8b attention"]
    sizes = ((t, i), "bfloat16"), ((i, o), "bfloat16"), ((i, r), "float32"), ((r, o), "float32"), ((t, o), "bfloat16")
    args = [jax.ShapeDtypeStruct(size, dtype, sharding=placed) for size, dtype in sizes]
    with jax.set_mesh(mesh):
        f = functools.partial(lowrank_matmul, impl="pallas_tpu")
        step = jax.jit(lambda x, w, a, b, dy: jax.vjp(lambda x, a, b: f(x, w, a, b), x, a, b)[1](dy))
        text = step.lower(*args).compile().as_text()
    assert text is not None and text.count('custom_call_target="tpu_custom_call"') == 2


MESHED = {
    "to heads": ("bsd,dnh->bsnh", (4, 6, 8), (8, 4, 2), (8, 3), (3, 4, 2)),
    "from heads": ("bsnh,nhd->bsd", (4, 6, 4, 2), (4, 2, 8), (4, 2, 3), (3, 8)),
    "branch": ("bsd,df->bsf", (4, 6, 8), (8, 12), (8, 3), (3, 12)),
    "down": ("bsf,fd->bsd", (4, 6, 12), (12, 8), (12, 3), (3, 8)),
}


@pytest.mark.parametrize("shape", [shard.MeshShape(2, 2, 2), shard.MeshShape(1, 8, 1), shard.MeshShape(1, 1, 4)])
@pytest.mark.parametrize("use", MESHED)
def test_on_a_mesh_each_device_multiplies_its_own_pieces(monkeypatch, use, shape):
    """With a stand-in for the kernels: value and gradients are what they are without a mesh, and calls are local."""
    spec, *sizes = MESHED[use]
    rng = np.random.default_rng(0)
    x, w, a, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    upstream = jnp.asarray(rng.normal(size=jnp.einsum(spec, x, w).shape), jnp.float32)
    seen = []

    def local(x, w, a, b):
        if not shard.on_one_device():
            raise Unsupported("takes one device's own arrays")
        seen.append(x.shape[0])
        return gradient.fused(gradient.plain, x, w, a, b)

    def value(x, a, b):
        edit = LowRank(a, b, jnp.asarray(0.5))
        return jnp.sum(delta.einsum(spec, x, delta.Bound(w, edit)) * upstream)

    want = jax.value_and_grad(value, (0, 1, 2))(x, a, b)
    monkeypatch.setitem(IMPLEMENTATIONS, "pallas_gpu", local)
    devices = math.prod((shape.data, shape.fsdp, shape.tensor))
    with jax.set_mesh(shard.make_mesh(shape, jax.devices()[:devices])):
        found = jax.jit(jax.value_and_grad(value, (0, 1, 2)))(x, a, b)
    ways = shape.data * shape.fsdp  # rows that it does not divide go the plain way, which XLA cuts up by itself
    assert set(seen) == (set() if x.shape[0] % ways else {x.shape[0] // ways * x.shape[1]})
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-4), want, found)
