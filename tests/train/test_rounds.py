# SPDX-License-Identifier: Apache-2.0
"""Several updates from one batch: every epoch sees each row once, in an order of its own that the step decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpost.train import state as states
from jaxpost.train.step import in_parts, make_rounds, make_step

ROWS = 12
BATCH = {"row": np.arange(ROWS), "x": np.linspace(-1, 2, ROWS * 3, dtype=np.float32).reshape(ROWS, 3)}
DESCENT = optax.sgd(0.1, momentum=0.9)


def loss(trainable, frozen, extra, batch, key):
    """A mean over the minibatch, of what it was told about the whole batch; its metrics say which rows it saw."""
    error = jnp.sum((batch["x"] - trainable["w"][None]) ** 2, axis=1) * batch["weight"]
    seen = jnp.zeros(ROWS).at[batch["row"]].add(1.0)
    return jnp.sum(error) / batch["count"], {
        "seen": seen,
        "first": seen * state_of(extra),
        "draw": jax.random.uniform(key),
    }


def state_of(extra):
    return extra["number"].astype(jnp.float32)


def count(batch):
    return {"count": jnp.float32(batch["row"].shape[0])}


def prepare(batch, extra):
    """A statement about all rows: how far each is from their mean."""
    weight = jnp.abs(batch["x"][:, 0] - jnp.mean(batch["x"][:, 0])) + 0.5
    return {**batch, "weight": weight}, {"mean": jnp.mean(batch["x"]), "was": extra["number"]}


def finish(extra, metrics):
    return {"number": extra["number"] + 1, "told": metrics["mean"]}


def fresh():
    extra = {"number": jnp.int32(5), "told": jnp.float32(0)}
    return states.start({"w": jnp.zeros(3)}, DESCENT, extra)


@functools.cache
def rounds(epochs, minibatches, microbatches=1):
    return jax.jit(make_rounds(make_step(loss, DESCENT, count, microbatches), prepare, finish, epochs, minibatches))


def taken(epochs, minibatches, microbatches=1, steps=1, key=0):
    state, told = fresh(), []
    for _ in range(steps):
        state, metrics = rounds(epochs, minibatches, microbatches)(state, None, BATCH, jax.random.key(key))
        told.append(jax.device_get(metrics))
    return jax.device_get(state), told


def test_one_epoch_of_one_minibatch_is_a_plain_step():
    state, (metrics,) = taken(1, 1)
    plain = jax.jit(make_step(loss, DESCENT, count))
    batch, _ = prepare(BATCH, fresh().extra)
    wanted, told = plain(fresh(), None, batch, jax.random.key(0))
    np.testing.assert_allclose(state.trainable["w"], wanted.trainable["w"], rtol=1e-6)
    np.testing.assert_array_equal(metrics["seen"], 1.0)
    np.testing.assert_allclose(metrics["grad_norm"], told["grad_norm"], rtol=1e-6)
    assert np.linalg.norm(state.trainable["w"]) > 0.1


@pytest.mark.parametrize("epochs, minibatches, microbatches", [(3, 1, 1), (2, 3, 1), (2, 3, 2)])
def test_every_epoch_sees_every_row_once(epochs, minibatches, microbatches):
    """Metrics are means over the updates, of which each saw its share of the rows."""
    state, (metrics,) = taken(epochs, minibatches, microbatches)
    np.testing.assert_allclose(metrics["seen"] * minibatches, 1.0, rtol=1e-6)
    assert int(state.step) == 1, "one step, however many updates"
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == ()]
    assert all(int(leaf) == epochs * minibatches for leaf in counts)


def test_what_is_said_of_the_whole_batch_is_said_once():
    """By the state as it was when the rollout was made, and what the next one finds is made of it."""
    state, told = taken(2, 3, steps=2)
    assert [int(metrics["was"]) for metrics in told] == [5, 6] and int(state.extra["number"]) == 7
    np.testing.assert_allclose(state.extra["told"], BATCH["x"].mean(), rtol=1e-6)
    np.testing.assert_allclose(told[0]["first"] * 3, 5.0, rtol=1e-6)


def test_orders_differ_by_epoch_step_and_key_and_nothing_else():
    """Momentum makes the outcome depend on the order."""
    one, again, other = taken(2, 3, steps=2), taken(2, 3, steps=2), taken(2, 3, steps=2, key=1)
    np.testing.assert_array_equal(one[0].trainable["w"], again[0].trainable["w"])
    assert np.abs(one[0].trainable["w"] - other[0].trainable["w"]).max() > 1e-4
    draws = [float(metrics["draw"]) for metrics in one[1]]
    assert draws[0] != draws[1] and draws == [float(metrics["draw"]) for metrics in again[1]]
    # From the same weights, but as if it were the second step: other minibatches.
    later = fresh().replace(step=jnp.int32(1))
    later, _ = rounds(2, 3)(later, None, BATCH, jax.random.key(0))
    first, _ = taken(2, 3)
    assert int(later.step) == 2 and np.abs(later.trainable["w"] - first.trainable["w"]).max() > 1e-4


def test_epochs_have_orders_of_their_own():
    """Two epochs of minibatches are not one epoch's minibatches twice."""

    def order(trainable, frozen, extra, batch, key):
        return jnp.sum(trainable["w"]), {"rows": batch["row"].astype(jnp.float32) * trainable["w"][0]}

    # The rate makes the weight 1, 10, 100 ...: so the mean over updates tells what each of them saw.
    grow = optax.GradientTransformation(
        lambda params: (), lambda updates, state, params: ({"w": 9 * params["w"]}, state)
    )
    step = make_rounds(
        make_step(order, grow, count), lambda batch, extra: (batch, {}), lambda extra, metrics: extra, 2, 3
    )
    batch = {"row": np.arange(6)}
    _, metrics = jax.jit(step)(states.start({"w": jnp.ones(1)}, grow), None, batch, jax.random.key(0))
    digits = np.round(np.asarray(metrics["rows"], np.float64) * 6).astype(int)
    seen = np.array([[(digit // 10**i) % 10 for i in range(6)] for digit in digits])  # [place, update]
    epochs = seen[:, :3], seen[:, 3:]
    assert all(sorted(epoch.ravel()) == list(range(6)) for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_parts_of_a_batch_come_back_in_order():
    def act(batch):
        assert batch["x"].shape == (3, 3)
        return {"double": 2 * batch["x"], "row": batch["row"]}

    found = jax.jit(lambda batch: in_parts(act, batch, 4))(BATCH)
    np.testing.assert_array_equal(found["row"], BATCH["row"])
    np.testing.assert_array_equal(found["double"], 2 * BATCH["x"])
