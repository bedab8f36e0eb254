# SPDX-License-Identifier: Apache-2.0
"""How AdaLoRA shares a falling budget of ranks among all matrices: an optimiser around the run's own, because it needs
gradients as they come and parameters as they become."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpost.arrays import Array
from jaxpost.faults import Fault


@dataclass(frozen=True)
class Budget:
    """How many triplets are left after each step: `start` until `warmup`, then less as a cube every `every` steps,
    `end` at step `last`, and the same ones from then on."""

    start: int
    end: int
    warmup: int
    last: int
    every: int

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the steps 0 to `last`: how many triplets to zero, and whether to choose them now."""
        if self.warmup >= self.last:
            raise Fault(
                f"adalora: the budget falls from step {self.warmup} (warmup) to step {self.last} (settle steps before "
                "the end); make warmup or settle smaller, or the run longer"
            )
        step = np.arange(self.last + 1)
        left = 1 - (step - self.warmup) / (self.last - self.warmup)
        budget = np.where(step <= self.warmup, self.start, np.trunc((self.start - self.end) * left**3 + self.end))
        chosen = (step > self.warmup) & ((step % self.every == 0) | (step == self.last))
        return (self.start - budget).astype(np.int32), chosen


Triplets = dict[str, dict[str, Array]]
"""By path, and by the name of the field. Not edits: what has the form of the parameters is taken for an optimiser's
moments, and laid where those are."""


class Allocation(NamedTuple):
    """State. `sensitivity` and `uncertainty` are of every number of the triplets (`triplets`); `kept` tells which are
    left."""

    inner: Any
    step: Array
    sensitivity: Triplets
    uncertainty: Triplets
    kept: dict[str, Array]


def allocating(
    inner: optax.GradientTransformation, budget: Budget, b1: float, b2: float, orthogonality: float
) -> optax.GradientTransformation:
    """The optimiser with the penalty's gradient added to what it gets, and triplets zeroed behind what it does."""

    def init(params: Any) -> Allocation:
        zeros = jax.tree.map(jnp.zeros_like, triplets(params))
        kept = {path: jnp.ones(fields["lam"].shape, bool) for path, fields in zeros.items()}
        return Allocation(inner.init(params), jnp.zeros((), jnp.int32), zeros, zeros, kept)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Allocation]:
        surplus, chosen = budget.table()
        push = jax.grad(lambda params: orthogonality * penalty(params))(params)
        gradients = jax.tree.map(jnp.add, updates, push)
        moved: tuple[Any, Any] = inner.update(gradients, state.inner, params)
        moves, inner_state = dict(moved[0]), moved[1]
        after = optax.apply_updates(params, moves)
        step, begun = jnp.minimum(state.step, budget.last), state.step < budget.last

        def smoothed(old: Array, new: Array, rate: float) -> Array:
            return jnp.where(begun, rate * old + (1 - rate) * new, old)

        now = jax.tree.map(lambda p, g: jnp.abs(p * g), triplets(after), triplets(gradients))
        sensitivity = jax.tree.map(lambda old, new: smoothed(old, new, b1), state.sensitivity, now)
        uncertainty = jax.tree.map(
            lambda old, new, mean: smoothed(old, jnp.abs(new - mean), b2), state.uncertainty, now, sensitivity
        )
        score = scores(jax.tree.map(jnp.multiply, sensitivity, uncertainty))
        ranked = jnp.sort(jnp.concatenate([s.reshape(-1) for s in score.values()]))
        zeroed = jnp.asarray(surplus)[step]
        threshold = jnp.where(zeroed > 0, ranked[zeroed - 1], -jnp.inf)
        choose = jnp.asarray(chosen)[step] & (state.step <= budget.last)
        kept = {path: jnp.where(choose, s > threshold, state.kept[path]) for path, s in score.items()}
        act = choose | (state.step > budget.last)
        for path, left in kept.items():
            lam = jnp.where(act & ~left, -params[path].lam, moves[path].lam)
            moves[path] = moves[path].replace(lam=lam)
        return moves, Allocation(inner_state, state.step + 1, sensitivity, uncertainty, kept)

    return optax.GradientTransformation(init, update)


def triplets(params: Any) -> Triplets:
    """The trained fields of those edits that are triplets."""
    names = ("p", "lam", "q")
    return {path: {n: getattr(edit, n) for n in names} for path, edit in params.items() if hasattr(edit, "lam")}


def scores(importance: Triplets) -> dict[str, Array]:
    """Of each triplet, its singular value's importance and the means of its vectors'."""

    def score(fields: dict[str, Array]) -> Array:
        lam = fields["lam"]
        p = jnp.mean(fields["p"].reshape(*lam.shape[:-1], -1, lam.shape[-1]), axis=-2)
        return lam + (p + jnp.mean(fields["q"].reshape(*lam.shape, -1), axis=-1))

    return {path: score(fields) for path, fields in importance.items()}


def penalty(params: Any) -> Array:
    """The mean over all matrices of how far the Gram matrices of their vectors are from the identity."""
    distances = []
    for edit in params.values():
        if not hasattr(edit, "lam"):
            continue
        rank = edit.lam.shape[-1]
        number = math.prod(edit.lam.shape[:-1])
        p, q = edit.p.reshape(number, -1, rank), edit.q.reshape(number, rank, -1)
        for gram in (jnp.einsum("mir,mis->mrs", p, p), jnp.einsum("mro,mso->mrs", q, q)):
            square = jnp.sum(jnp.square(gram - jnp.eye(rank)[None]), axis=(-2, -1))
            distances.append(jnp.sqrt(jnp.maximum(square, 1e-30)))  # the root has no slope at zero
    return jnp.mean(jnp.concatenate(distances))
