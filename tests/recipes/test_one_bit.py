# SPDX-License-Identifier: Apache-2.0
"""Distilling a one-bit delta: its loss, what it trains, and that it gets nearer to the tuned model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpost import delta, trees
from jaxpost.models import decoder
from jaxpost.recipes import one_bit
from jaxpost.train.state import State
from jaxpost.train.step import make_step
from tests.laws.cases import randomised
from tests.train.tiny import CONFIG, base, examples, stacked

BATCH = jax.tree.map(jnp.asarray, stacked([[example] for example in examples([9, 2, 5, 12])]))
RECIPE = one_bit.Config("", "", batches=one_bit.Batches(rows=4, seq_len=12), chunk=20)


@functools.cache
def parts():
    """The tuned model's delta, the one-bit one's halves, and what is frozen."""
    specs = decoder.specs(CONFIG)
    weights = jax.tree.map(jnp.asarray, base())
    drawn = randomised({path: x for path, x in trees.flatten(weights).items() if x is not None}, 1)
    # Of matrices, so that one layer's change is much larger than the other's.
    fine = {
        path: delta.Dense(0.2 * change)
        for path, change in drawn.items()
        if path.startswith("layers") and change.ndim > 2
    }
    made = delta.one_bit(delta.bind(weights, fine), weights, specs)
    trainable, fixed = delta.partition(made)
    return fine, made, trainable, {"base": weights, "fixed": {**fixed, one_bit.TEACHER: fine}}


def test_the_loss_is_the_mean_squared_difference_of_logits():
    fine, made, trainable, frozen = parts()
    rows = decoder.rows(BATCH["tokens"], BATCH["segments"], BATCH["positions"], 1)
    one, other = (
        np.asarray(decoder.logits(CONFIG, delta.bind(frozen["base"], edits), BATCH["tokens"], rows))
        for edits in (made, fine)
    )
    seen = np.asarray(BATCH["segments"] > 0)  # every token counts, trained on or not
    loss = one_bit.make_loss(CONFIG, RECIPE)
    total, metrics = loss(trainable, frozen, None, {**BATCH, **one_bit.denominators(BATCH)}, None)
    np.testing.assert_allclose(total, ((one - other) ** 2)[seen].mean(), rtol=1e-5)
    assert metrics["tokens"] == seen.sum() == 28


def test_scales_alone_are_trained_and_get_nearer():
    _, _, trainable, frozen = parts()
    assert {leaf.shape for leaf in jax.tree.leaves(trainable)} == {(2,)} and len(jax.tree.leaves(trainable)) == 7
    optimiser = optax.adam(1e-2)
    step = jax.jit(make_step(one_bit.make_loss(CONFIG, RECIPE), optimiser, one_bit.denominators))
    state = State(jnp.int32(0), trainable, optimiser.init(trainable))
    losses = []
    for _ in range(10):
        state, metrics = step(state, frozen, BATCH, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
