# SPDX-License-Identifier: Apache-2.0
"""Preferences: a pair's loss is its own, wherever its row lies and however its batch is cut, for every objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, params
from jaxpost.data.batches.packing import MOST, Shifted
from jaxpost.delta import Both, Head, Lora
from jaxpost.models import decoder
from jaxpost.recipes import dpo, kto, reward
from jaxpost.recipes.preferences.answers import answers, unreserved
from jaxpost.recipes.preferences.objectives import Dpo
from tests.train.tiny import CONFIG, base, stacked

SIZES = [(5, 7), (9, 2), (3, 3), (6, 4)]
PROMPT = 2


def answer(length, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, CONFIG.vocab, PROMPT + length).astype(np.int32)
    mask = (np.arange(PROMPT + length - 1) >= PROMPT - 1).astype(np.float32)
    return Shifted(ids[:-1], ids[1:], mask)


def laid(rows, whole=False):
    """A batch of pairs, with everything that any unit puts beside the tokens."""
    pairs = [[answer(length, 2 * i + k) for k, length in enumerate(SIZES[i])] for i in range(len(SIZES))]
    batch = stacked([[one for i in row for one in pairs[i]] for row in rows], 40)
    weight, margin, label = (np.zeros((len(rows), MOST // 2), np.float32) for _ in range(3))
    groups, scores = np.zeros((len(rows), MOST), np.int32), np.zeros((len(rows), MOST), np.float32)
    for b, row in enumerate(rows):
        for k, i in enumerate(row):
            weight[b, k], margin[b, k], label[b, k] = 1.0 + 0.5 * i, 0.1 * i, i % 2
            groups[b, 2 * k : 2 * k + 2], scores[b, 2 * k] = k + 1, 1.0 + i
    each = np.repeat(weight, 2, axis=1)
    return {**batch, "weight": weight, "margin": margin, "agreement": np.where(weight > 0, 0.75, 0.0).astype("f4"),
            "label": label, "groups": groups, "scores": scores, "each": each}  # fmt: skip


@functools.cache
def batches():
    """Packed; each pair by itself; and packed otherwise."""
    return laid([[0, 1], [2, 3], [], []]), laid([[0], [1], [2], [3]]), laid([[3, 0, 2], [1], [], []])


@functools.cache
def halves():
    """With every number drawn, so that every leaf has a gradient."""
    made = params.init(Both(Lora(rank=2), Head(1))(decoder.specs(CONFIG)), jax.random.key(1))
    trainable, fixed = delta.partition(
        jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), made)
    )
    return trainable, {"base": base(), "fixed": fixed}


MPO = Dpo("ipo", weight=0.8, also={"sigmoid": 0.2, "sft": 1.0}, nll="token", ld_alpha=0.5, wpo=True)
RECIPES = {
    "dpo": (dpo, dpo.Config("", delta=Lora(), objective=MPO)),
    "kto": (kto, kto.Config("")),
    "ranked": (reward, reward.Config("", objective=reward.Ranked(centring=0.01))),
}
COUPLED = {"kto"}


def whole(name, batch):
    """What belongs to the whole batch, however it is cut."""
    recipe, config = RECIPES[name]
    return reward.denominators(config, batch) if recipe is reward else recipe.denominators(batch)


@functools.cache
def program(name):
    recipe, config = RECIPES[name]
    loss = recipe.make_loss(CONFIG, config)

    def value(trainable, frozen, batch):
        return loss(trainable, frozen, None, batch, None)

    return jax.jit(jax.grad(value, has_aux=True))


def measured(name, batch, of=None):
    """Gradients and metrics of a batch, as a part of another."""
    dressed = {**batch, "weight": batch["each"]} if name == "ranked" else batch
    return jax.device_get(program(name)(*halves(), {**dressed, **whole(name, of or dressed)}))


@functools.cache
def packed(name):
    return measured(name, batches()[0])


def alike(one, other, what):
    (gradients, metrics), (wanted, wanted_metrics) = one, other
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=f"{what}: {name}")
    for found, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=2e-3, atol=2e-5, err_msg=what)


@pytest.mark.parametrize("name", RECIPES)
def test_packed_is_separate_and_so_is_cut(name):
    """Loss, metrics and gradients; pairs in another order and rows of padding change nothing either."""
    for which in (1, 2):
        alike(measured(name, batches()[which]), packed(name), f"{name}, batch {which}")
    gradients, metrics = packed(name)
    assert np.isfinite(metrics["loss"]) and 0.0 <= metrics["accuracy"] <= 1.0
    assert sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(gradients)) ** 0.5 > 1e-3
    if name in COUPLED:
        return
    batch = batches()[1]
    of = {**batch, "weight": batch["each"]} if name == "ranked" else batch
    parts = [{x: np.where(keep.reshape(-1, *[1] * (y.ndim - 1)), y, 0) for x, y in batch.items()}
             for keep in (np.arange(4) % 2 == 0, np.arange(4) % 2 == 1)]  # fmt: skip
    alike(jax.tree.map(np.add, *(measured(name, part, of) for part in parts)), packed(name), f"{name}, cut")


def test_a_model_without_the_learned_prompt_hears_nothing_of_it():
    """What it says of answers is the same whether examples reserve places or not, each where the other has padding."""

    def reserved(one, places):
        ids = -1 - np.arange(places, dtype=np.int32)
        none = np.zeros(places, np.float32)
        return Shifted(*(np.concatenate([x, y]) for x, y in zip((ids, none.astype(np.int32), none), one, strict=True)))

    ones = [answer(length, seed) for seed, length in enumerate((5, 7))]
    said = jax.jit(answers, static_argnums=0)
    plain = said(CONFIG, base(), stacked([ones], 40))
    batch = jax.tree.map(jnp.asarray, stacked([[reserved(one, 3) for one in ones]], 40))
    hidden = said(CONFIG, base(), unreserved(batch, 3))
    np.testing.assert_allclose(hidden.log_probs, plain.log_probs, rtol=1e-5)
    np.testing.assert_array_equal(hidden.lengths, plain.lengths)
