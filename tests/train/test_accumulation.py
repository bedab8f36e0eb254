# SPDX-License-Identifier: Apache-2.0
"""However a batch is cut, into microbatches or over devices, its loss, metrics and update are the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.recipes import run, sft
from jaxpost.train.step import make_step
from tests.train.tiny import CONFIG, CUBE, assembled, config, copied, started, uneven

METRICS = {"loss", "accuracy", "predictions", "tokens", "grad_norm"}


@functools.cache
def updated(shape, microbatches, naive=False):
    """The change of every leaf, and the metrics, of one step of plain gradient descent at rate 1."""
    assembly = assembled(shape)
    settings = config(train=run.Training(microbatches=microbatches))
    with jax.set_mesh(assembly.mesh):
        if naive:  # the mean of the microbatches' means
            right = sft.make_loss(CONFIG, settings)

            def loss(trainable, frozen, extra, batch, key):
                mean = {**batch, "trained": microbatches * jnp.maximum(jnp.sum(batch["mask"]), 1.0)}
                return right(trainable, frozen, extra, mean, key)

            step = jax.jit(make_step(loss, assembly.optimiser, lambda batch: {}, microbatches), donate_argnums=0)
        else:
            step = sft.programs(settings, assembly)["step"].call
        state, frozen = started(assembly)
        before = copied(state.trainable)
        after, metrics = step(state, frozen, run.place(uneven(), assembly.mesh), jax.random.key(0))
        return jax.tree.map(lambda a, b: np.asarray(a) - b, copied(after.trainable), before), copied(metrics)


def difference(one, other):
    """Of two updates, relative to the size of the second, the worst leaf."""
    return max(
        np.linalg.norm(a - b) / np.linalg.norm(b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.parametrize("shape, microbatches", [(None, 2), (None, 4), (CUBE, 4)])
def test_neither_microbatches_nor_devices_change_anything(shape, microbatches):
    update, metrics = updated(shape, microbatches)
    wanted, wanted_metrics = updated(None, 1)
    assert metrics.keys() == wanted_metrics.keys() == METRICS
    for name in METRICS:
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=2e-5, err_msg=name)
    assert all(np.linalg.norm(leaf) > 1e-5 for leaf in jax.tree.leaves(wanted)), "every leaf moves"
    assert difference(update, wanted) < 1e-4


def test_counts_are_those_of_the_whole_batch():
    batch, (_, metrics) = uneven(), updated(None, 4)
    assert metrics["predictions"] == batch["mask"].sum() and metrics["tokens"] == (batch["segments"] > 0).sum()


def test_the_mean_of_means_would_be_noticed():
    """The mistake that these tests are there for is far outside of their tolerance."""
    update, metrics = updated(None, 4, naive=True)
    wanted, wanted_metrics = updated(None, 1)
    assert abs(metrics["loss"] / wanted_metrics["loss"] - 1) > 1e-3
    assert difference(update, wanted) > 0.1


def test_each_device_keeps_its_rows():
    """A microbatch takes rows from every device: rows of activations and tokens are not sent around to cut a batch."""
    from jaxpost.train.step import accumulate

    assembly = assembled(CUBE)
    rows = np.arange(16, dtype=np.float32)[:, None] * np.ones((1, 6), np.float32)
    seen = []

    def gradients(part, key):
        seen.append(part["x"].shape)
        return part["x"].sum(), {"first": part["x"][:, 0].sum()}

    with jax.set_mesh(assembly.mesh):
        batch = run.place({"x": rows}, assembly.mesh)
        compiled = jax.jit(lambda b: accumulate(gradients, b, jax.random.key(0), 4)).lower(batch).compile()
        total, metrics = compiled(batch)
    assert set(seen) == {(4, 6)}
    assert total == rows.sum() and metrics["first"] == rows[:, 0].sum()
    text = compiled.as_text()
    assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))
    assert "all-reduce" in text, "the sum itself does travel"
