# SPDX-License-Identifier: Apache-2.0
"""One update from one global batch."""

from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from jaxpost.arrays import Array, Batch, Key, Metrics, Tree
from jaxpost.train.state import State


class LossFn(Protocol):
    """A scalar to minimise and what to report of it. Both are sums over examples divided by denominators of the whole
    global batch, which the batch carries, so that those of microbatches add up to those of the batch."""

    def __call__(
        self, trainable: Tree, frozen: Tree, extra: Tree, batch: Batch, key: Key | None
    ) -> tuple[Array, Metrics]: ...


Denominators = Callable[[Batch], Mapping[str, Array]]
"""From the whole global batch to scalars that are added to it before it is cut into microbatches."""

Step = Callable[[State, Tree, Batch, Key], tuple[State, Metrics]]


def make_step(
    loss: LossFn, optimiser: optax.GradientTransformation, denominators: Denominators, microbatches: int = 1
) -> Step:
    """The update as a pure function `(state, frozen, batch, key) -> (state, metrics)`; whoever calls it jits it with
    the state donated. The key of a step is folded from the run's key and the step's number, so nothing but the state
    need be saved to go on."""

    def step(state: State, frozen: Tree, batch: Batch, key: Key) -> tuple[State, Metrics]:
        key = jax.random.fold_in(key, state.step)
        scalars = denominators(batch)

        def gradients(rows: Batch, key: Key) -> tuple[Tree, Metrics]:
            grads, metrics = jax.grad(loss, has_aux=True)(
                state.trainable, frozen, state.extra, {**rows, **scalars}, key
            )
            return grads, metrics

        grads, metrics = accumulate(gradients, batch, key, microbatches)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return State(state.step + 1, trainable, opt_state, state.extra), metrics

    return step


def accumulate(
    gradients: Callable[[Batch, Key], tuple[Tree, Metrics]], batch: Batch, key: Key, microbatches: int
) -> tuple[Tree, Metrics]:
    """Gradients and metrics summed over microbatches, in float32, holding one microbatch's activations at a time."""
    if microbatches == 1:
        return gradients(batch, key)

    # Every device keeps its own rows: microbatch i takes each m-th row from i on, not a contiguous stretch.
    cut = {name: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1) for name, x in batch.items()}

    def add(total: tuple[Tree, Metrics], part: tuple[Batch, Array]) -> tuple[tuple[Tree, Metrics], None]:
        rows, index = part
        return jax.tree.map(jnp.add, total, gradients(rows, jax.random.fold_in(key, index))), None

    shapes = jax.eval_shape(gradients, {name: x[0] for name, x in cut.items()}, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    total, _ = jax.lax.scan(add, zeros, (cut, jnp.arange(microbatches)))
    return total


def make_rounds(
    update: Step,
    prepare: Callable[[Batch, Tree], tuple[Batch, Metrics]],
    finish: Callable[[Tree, Metrics], Tree],
    epochs: int = 1,
    minibatches: int = 1,
) -> Step:
    """A step of several updates from one batch, as policies learn from their own answers.

    `prepare(batch, extra)` adds what is a statement about the whole batch (advantages), and says what there is to
    report of it. Then every epoch takes the rows in another order, in `minibatches` parts, each an `update`. Metrics
    are means over the updates; `finish(extra, metrics)` is what the next step finds in `extra`.
    """

    def step(state: State, frozen: Tree, batch: Batch, key: Key) -> tuple[State, Metrics]:
        number, (own, order) = state.step, jax.random.split(jax.random.fold_in(key, state.step))
        batch, told = prepare(batch, state.extra)
        if epochs == minibatches == 1:
            state, metrics = update(state, frozen, batch, own)
        else:
            rows = next(iter(batch.values())).shape[0]
            orders = jax.vmap(lambda key: jax.random.permutation(key, rows))(jax.random.split(order, epochs))

            def one(state: State, at: Array) -> tuple[State, Metrics]:
                return update(state, frozen, {name: x[at] for name, x in batch.items()}, own)

            state, metrics = jax.lax.scan(one, state, orders.reshape(epochs * minibatches, -1))
            metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        metrics = {**metrics, **told}
        return State(number + 1, state.trainable, state.opt_state, finish(state.extra, metrics)), metrics

    return step


def in_parts(act: Callable[[Batch], Tree], batch: Batch, parts: int) -> Tree:
    """`act` over the rows of a batch, a part of them at a time, each device its own."""
    if parts == 1:
        return act(batch)
    cut = {name: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1) for name, x in batch.items()}
    done = jax.lax.map(act, cut)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), done)
