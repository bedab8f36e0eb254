# SPDX-License-Identifier: Apache-2.0
"""What depends on nothing of a layer's own is not carried out of the scan over layers at the size of activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params, quant
from jaxpost.arrays import everywhere, tied
from jaxpost.kernels.attention import cudnn
from jaxpost.models import decoder
from jaxpost.models.architecture import Decoder
from tests.jaxprs import before_loops

CONFIG = Decoder(vocab=50, d=32, layers=3, heads=4, kv_heads=2, head_size=16, ffn=48, max_length=64, dtype="bfloat16")
ROWS, LENGTH = 3, 64
TOKENS = ROWS * LENGTH


def shared(method, segments, base=None, key=None):
    """The sizes of what a loss and its gradient make by broadcasting outside the loops over layers."""
    specs = decoder.specs(CONFIG)
    weights = params.init(specs, jax.random.key(0))
    if base is not None:
        weights = quant.quantise_tree(weights, specs, base)
    edits = params.init(method(specs), jax.random.key(1))
    tokens = jnp.ones((ROWS, LENGTH), jnp.int32)
    size = LENGTH // segments
    place = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    rows = decoder.rows(tokens, place // size + 1, place % size, most=segments)

    def loss(edits):
        x = decoder.embed(CONFIG, bound := delta.bind(weights, edits, key), tokens)
        hidden, _ = decoder.trunk(CONFIG, bound, x, rows, remat="most")
        return jnp.sum(hidden.astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(edits).jaxpr
    found = [e.outvars[0].aval for e in before_loops(jaxpr) if e.primitive.name == "broadcast_in_dim"]
    return sorted((int(np.prod(each.shape)) for each in found), reverse=True)


LORA = delta.Lora(rank=2)


@pytest.mark.parametrize("kind", ["plain", "packed", "dropout", "nf4", "nf4 once", "int4", "int8", "prefix"])
def test_no_loop_is_given_constants_of_the_size_of_activations(kind):
    """The largest that is allowed: positions against positions (the mask), once for all heads and layers."""
    formats = {"nf4": quant.Nf4(), "nf4 once": quant.Nf4(double=False), "int4": quant.Int4(), "int8": quant.Int8()}
    method = {"dropout": delta.Lora(rank=2, dropout=0.5), "prefix": delta.Prefix(4)}.get(kind, LORA)
    key = jax.random.key(2) if kind == "dropout" else None
    sizes = shared(method, 4 if kind == "packed" else 1, formats.get(kind), key)
    assert sizes and sizes[0] <= TOKENS * LENGTH, sizes[:5]
    assert sum(sizes) <= 4 * TOKENS * LENGTH, sizes


def test_nor_those_of_packed_rows_for_cudnn(monkeypatch):
    """Its own product stands for the kernel, which needs a GPU to be traced."""
    from jax._src.cudnn import fused_attention_stablehlo

    def stands_for(q, k, v, **_):
        return q * (1 + jnp.sum(k * v, axis=-1, keepdims=True))

    monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", stands_for)
    segments = jnp.ones((ROWS, LENGTH), jnp.int32)

    def loss(x):
        def layer(x, w):
            return cudnn._packed(*(3 * [x * w]), segments, 4, None, 1.0), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, jnp.ones(3, x.dtype))[0].astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(jnp.ones((ROWS, LENGTH, 4, 16), jnp.bfloat16)).jaxpr
    found = [e.outvars[0].aval.shape for e in before_loops(jaxpr) if e.primitive.name == "broadcast_in_dim"]
    assert [shape for shape in found if np.prod(shape) > 4 * TOKENS] == [(ROWS, LENGTH, 4, 16)], "the sum's gradient"


def test_they_are_what_they_are():
    truths, codes = jnp.array([True, False]), jnp.array([3, 0, 255], jnp.uint8)
    assert everywhere(1.5, truths).tolist() == [1.5, 1.5]
    assert everywhere(-2.0, codes, jnp.bfloat16).tolist() == [-2, -2, -2]
    x = jnp.arange(3.0)
    assert tied(truths, x).tolist() == [True, False]
    assert jax.grad(lambda x: jnp.sum(x * tied(jnp.float32(2), x)))(x).tolist() == [2, 2, 2]
