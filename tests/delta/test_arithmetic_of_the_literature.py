# SPDX-License-Identifier: Apache-2.0
"""What papers say their methods cost, from specs alone: no weight exists here that is larger than a few numbers."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params
from jaxpost.delta import LowRank, algebra
from jaxpost.delta.one_bit import one_bit_specs
from jaxpost.models import decoder
from jaxpost.models.architecture import Decoder
from jaxpost.models.presets import PRESETS
from jaxpost.params import ParamSpec, normal

LLAMA2: dict[str, dict[str, Any]] = {
    "7B": dict(d=4096, layers=32, heads=32, kv_heads=32, ffn=11008),
    "13B": dict(d=5120, layers=40, heads=40, kv_heads=40, ffn=13824),
    "70B": dict(d=8192, layers=80, heads=64, kv_heads=8, ffn=28672),
}


def llama2(size):
    return Decoder(vocab=32000, head_size=128, max_length=4096, dtype="float16", **LLAMA2[size])


def trained(made):
    """How many numbers a delta of specs trains."""
    return params.count(delta.partition(made)[0])


def bytes_of(specs):
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params.abstract(specs)))


def matrix(inner, outer):
    return {"w": ParamSpec((inner, outer), ": d : f", normal(0.02))}


def test_lora_of_a_small_matrix():
    """The textbook case: rank 8 on 512 x 64."""
    specs = matrix(512, 64)
    count, whole = trained(delta.Lora(rank=8, targets=("w",))(specs)), params.count(specs)
    assert (count, whole) == (4_608, 32_768)
    assert round(100 * (1 - count / whole)) == 86  # per cent fewer


def test_lora_of_gpt3():
    """Hu et al. 2021: rank 4 on q and v of 175B is 18.9M parameters, a checkpoint of about 35 MB in 16 bits."""
    config = Decoder(
        vocab=50257, d=12288, layers=96, heads=96, kv_heads=96, head_size=128, ffn=49152, rope=None, gated=False,
        norm="layer", biases=("q", "k", "v", "o", "up", "down"), tied=True, max_length=2048, dtype="float16",
    )  # fmt: skip
    specs = decoder.specs(config)
    count = trained(delta.Lora(rank=4, targets=("q", "v"))(specs))
    assert count == 18_874_368
    assert params.count(specs) == pytest.approx(175e9, rel=0.003)
    assert count * 2 / 2**20 == pytest.approx(35, rel=0.03)


def test_bitfit_of_bert_base():
    """Zaken et al. 2022: about 0.1M of 110M. Ours is BERT's shape as a decoder: without token types and pooler, and
    with a norm behind the last block instead of one behind the embedding."""
    config = Decoder(
        vocab=30522, d=768, layers=12, heads=12, kv_heads=12, head_size=64, ffn=3072, rope=None, gated=False,
        norm="layer", biases=("q", "k", "v", "o", "up", "down"), tied=True, max_length=512,
    )  # fmt: skip
    specs = decoder.specs(config)
    count = trained(delta.BitFit()(specs))
    assert count == 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768 == 102_144
    assert params.count(specs) == pytest.approx(110e6, rel=0.02)
    assert 100 * count / params.count(specs) == pytest.approx(0.09, abs=0.01)


def test_a_prompt_on_7b():
    """100 virtual tokens are 0.006 % of a 7B model."""
    specs = decoder.specs(PRESETS["llama-2-7b"])
    count = trained(delta.Prompt(tokens=100)(specs))
    assert count == 100 * 4096
    assert round(100 * count / params.count(specs), 3) == 0.006


def test_deep_prompts_on_7b():
    """P-tuning v2 (Liu et al. 2021): keys and values of every layer are 0.01 to 3 %, from a few places to hundreds."""
    specs = decoder.specs(PRESETS["llama-2-7b"])
    shares = {
        length: 100 * trained(delta.Prefix(tokens=length)(specs)) / params.count(specs) for length in (4, 100, 700)
    }
    assert trained(delta.Prefix(tokens=100)(specs)) == 100 * 32 * 2 * 4096
    assert 0.01 < shares[4] < 0.02 and round(shares[100], 2) == 0.39 and 2.5 < shares[700] < 3.0


@pytest.mark.parametrize("size, whole, ratio", [("7B", 13.48, 10.1), ("13B", 26.03, 11.6), ("70B", 137.95, 14.4)])
def test_bitdelta_of_llama_2(size, whole, ratio):
    """Liu et al. 2024 give the models' sizes as here, in units of 10^9 bytes; with embedding and head kept in 16 bits,
    their deltas' 1.24, 2.09 and 8.95 are these in units of 2^30 bytes."""
    specs = decoder.specs(llama2(size))
    before, after = bytes_of(specs), bytes_of(one_bit_specs(specs))
    assert before / 1e9 == pytest.approx(whole, abs=0.01)
    assert after / 2**30 == pytest.approx({"7B": 1.24, "13B": 2.09, "70B": 8.95}[size], abs=0.01)
    assert round(before / after, 1) == ratio


def test_one_bit_pays_more_the_wider_the_model():
    """The embeddings grow with the width, the blocks with its square."""
    ratios = []
    for size in LLAMA2:
        specs = decoder.specs(llama2(size))
        ratios.append(bytes_of(specs) / bytes_of(one_bit_specs(specs)))
    assert ratios == sorted(ratios) and 10 < ratios[0] and ratios[-1] < 16


def test_only_the_scales_of_a_one_bit_delta_are_trained():
    """One for each matrix of each layer: 224 of Llama 2 7B."""
    assert trained(one_bit_specs(decoder.specs(llama2("7B")))) == 32 * 7


def test_switching_a_task():
    """W + B A becomes W + B' A' by adding - B A + B' A', whose rank is no more than the sum of the two."""
    rng = np.random.default_rng(0)
    w, (a, b), (c, d) = rng.normal(size=(6, 5)), *((rng.normal(size=(6, r)), rng.normal(size=(r, 5))) for r in (2, 3))
    old, new = ({"w": LowRank(jnp.asarray(a), jnp.asarray(b), jnp.float32(1.0))} for a, b in ((a, b), (c, d)))
    change = algebra.switch(old, new)["w"]
    assert isinstance(change, LowRank) and change.a.shape == (6, 5)
    there = change.dense(jnp.asarray(w + a @ b, jnp.float32), jnp.float32)
    np.testing.assert_allclose(there, w + c @ d, atol=1e-5)


def test_two_zero_factors_never_move():
    """Each one's gradient is a product with the other: one of them must start elsewhere."""
    x, w = jnp.ones((1, 2, 4)), jnp.ones((4, 3))

    def loss(edit):
        return jnp.sum(delta.einsum("bsd,df->bsf", x, delta.Bound(w, edit)) ** 2)

    zero = LowRank(jnp.zeros((4, 2)), jnp.zeros((2, 3)), jnp.float32(1.0))
    gradient = jax.grad(loss)(zero)
    assert not np.any(gradient.a) and not np.any(gradient.b)
    started = jax.grad(loss)(replace(zero, a=jnp.ones((4, 2))))
    assert np.all(started.b) and not np.any(started.a)
