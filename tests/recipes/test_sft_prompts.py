# SPDX-License-Identifier: Apache-2.0
"""Tuning prompts and prefixes: the loss is the same however examples are packed and batches cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpost import delta, params
from jaxpost.data.batches.loader import Loader
from jaxpost.data.chat.template import BuiltIn
from jaxpost.data.tokenizers import Tokens, Virtual, with_virtual
from jaxpost.models import decoder
from jaxpost.recipes import sft
from jaxpost.recipes.assembly import reserving
from jaxpost.train.state import start
from jaxpost.train.step import make_step
from tests.train.tiny import CONFIG, base, config, mesh_of

KINDS = {"network": delta.Prefix(3, hidden=5), "infix": delta.Prompt(3, place="between")}


class Ids:
    """As much of a tokenizer as rows of tokens ask for."""

    vocab_size, bos, eos, pad, ends, template, continues = CONFIG.vocab, 1, 2, 0, (2,), BuiltIn(), True
    virtual = Virtual()

    def encode(self, text): ...
    def encode_offsets(self, text, after=""): ...
    def encode_offsets_batch(self, texts, after): ...
    def decode(self, ids): ...
    def piece(self, token): ...
    def save(self, directory): ...


def rows():
    rng = np.random.default_rng(0)
    for length, prompt in zip([9, 4, 7, 5, 8, 3, 6, 10], [2, 1, 3, 2, 4, 1, 5, 3], strict=True):
        yield Tokens(rng.integers(3, CONFIG.vocab, length).astype(np.int32), np.arange(length) >= prompt)


def batch(kind, packing, count):
    tokenizer = reserving(Ids(), kind)
    loader = Loader(list(rows()), tokenizer, count, 32, packing, seed=None, epochs=1)
    made = loader.next()
    with pytest.raises(StopIteration):
        loader.next()
    return jax.tree.map(jnp.asarray, made)


@functools.cache
def halves(name):
    drawn = params.init(KINDS[name](decoder.specs(CONFIG)), jax.random.key(1))
    leaves, form = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    trainable, fixed = delta.partition(jax.tree.unflatten(form, moved))
    return trainable, {"base": base(), "fixed": fixed}


@pytest.mark.parametrize("name", KINDS)
def test_packed_and_in_pieces_or_neither_the_loss_and_its_gradient_are_the_same(name):
    trainable, frozen = halves(name)
    kind = KINDS[name]
    found = []
    for packing, count, pieces in (("none", 8, 1), ("pack", 4, 2)):
        made = batch(kind, packing, count)
        assert (made["tokens"] < 0).sum() == 8 * kind.virtual and made["targets"].min() >= 0
        with jax.set_mesh(mesh_of(None)):
            optimiser = optax.sgd(1.0)
            loss = sft.make_loss(CONFIG, config(delta=kind, batches=sft.Batches(packing=packing)))
            step = jax.jit(make_step(loss, optimiser, sft.denominators, pieces))
            state, metrics = step(start(trainable, optimiser), frozen, made, jax.random.key(0))
        found.append((metrics["loss"], state.trainable))
    (loss, moved), (other, elsewhere) = found
    changed = jax.tree.map(lambda a, b: np.linalg.norm(a - b), moved, trainable)
    assert all(size > 1e-7 for size in jax.tree.leaves(changed))
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), elsewhere, moved)


def test_the_tokenizer_reserves_what_the_delta_needs():
    plain = with_virtual(Ids(), Virtual())
    assert reserving(plain, delta.Lora()).virtual.count == 0
    assert reserving(plain, KINDS["infix"]).virtual == Virtual(3, "between")
    assert reserving(plain, KINDS["network"]).virtual == Virtual(3) and plain.virtual == Virtual()
