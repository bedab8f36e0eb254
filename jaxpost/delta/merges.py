# SPDX-License-Identifier: Apache-2.0
"""Several deltas of one base made one.

What is merged is what each delta changes a weight by, every layer's matrix by itself. Mixing factors instead, the A of
one update with the A of another (PEFT's `linear`), gives the product of two sums and not the sum of the products: that
is no merge of what was learned, and is not offered.
"""

import functools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta import algebra
from jaxpost.delta.bind import Delta, spread
from jaxpost.delta.contract import dense
from jaxpost.delta.dense import Dense
from jaxpost.delta.insert import Insert
from jaxpost.delta.low_rank import LowRank
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec

How = Literal["cat", "svd", "ties", "dare", "dare_ties", "magnitude"]
Majority = Literal["total", "frequency"]


@dataclass(frozen=True)
class Merge:
    """How deltas become one; `Merge("svd", rank=8)(deltas, specs)` is a delta.

    cat: their weighted sum, exactly; low-rank updates stand side by side, so ranks add up.
    svd: the update of the given rank that is nearest to that sum.
    ties (Yadav et al. 2023, https://arxiv.org/abs/2306.01708): of each change only the share `density` with the largest
    numbers is kept, a sign is elected for every number, by their sum (`total`) or by how many have it (`frequency`),
    and those of that sign are weighted and averaged over how many they are.
    dare (Yu et al. 2023, https://arxiv.org/abs/2311.03099): of each change a random share `density` is kept and divided
    by it, then they are summed; dare_ties goes on as ties instead.
    magnitude: of each change the share with the largest numbers is kept, then they are summed.

    A weight is 1 unless given. The last four make dense changes; with a `rank`, the nearest update of that rank.
    """

    how: How = "cat"
    weights: tuple[float, ...] = ()
    rank: int = 0
    density: float = 0.5
    majority: Majority = "total"
    seed: int = 0

    def __call__(self, deltas: Sequence[Delta], specs: Tree) -> dict[str, Any]:
        """Raises `Fault` for deltas of different targets, and for edits whose change depends on the weight."""
        if not deltas:
            raise Fault("merge: there is no delta to merge; give at least one")
        deltas = [spread(delta) for delta in deltas]  # of a network that writes edits, what it writes
        weights = self.weights or (1.0,) * len(deltas)
        self._check(deltas, weights)
        if self.how == "cat":
            return algebra.add(*(algebra.scale(delta, by) for delta, by in zip(deltas, weights, strict=True)))
        flat = trees.flatten(specs)
        return {path: self._merged(path, flat[path], [d[path] for d in deltas], weights) for path in deltas[0]}

    def _check(self, deltas: Sequence[Delta], weights: Sequence[float]) -> None:
        if len(weights) != len(deltas):
            raise Fault(f"merge: {len(deltas)} deltas and {len(weights)} weights; give one weight each, or none")
        if not all(map(math.isfinite, weights)):
            raise Fault(f"merge: the weights are {', '.join(map(str, weights))}; each must be a number")
        if self.rank < 0:
            raise Fault(f"merge: rank is {self.rank}; give one of at least 1, or 0 for none")
        if self.how == "svd" and self.rank < 1:
            raise Fault(f"merge: rank is {self.rank}; svd makes an update of a rank, at least 1")
        if not 0 < self.density <= 1:
            raise Fault(f"merge: density is {self.density}; it is the share that is kept, above 0 and at most 1")
        shared = set(deltas[0]).intersection(*deltas)
        if odd := sorted(set().union(*deltas) - shared):
            raise Fault(f"merge: only some of the deltas change {', '.join(odd)}; merge deltas of the same targets")

    def _merged(self, path: str, spec: ParamSpec, edits: Sequence[Any], weights: Sequence[float]) -> Any:
        for edit in edits:
            algebra.check_additive(path, edit)
        lead, inner, outer = (spec.sizes(group) for group in range(3))
        rows, columns = math.prod(inner), math.prod(outer)
        factored = bool(self.rank and inner and outer)
        if factored and self.rank > min(rows, columns):
            raise Fault(f"merge: rank is {self.rank}, and the matrices of {path!r} have {min(rows, columns)} at most")

        def merged(inputs: tuple[Key, Sequence[Any]]) -> Any:
            """Of one layer's matrix, whose dense change is in memory only while this runs."""
            key, edits = inputs
            if factored and self.how == "svd" and (whole := _factors(edits, weights)) is not None:
                return nearest_to_product(whole.a.reshape(rows, -1), whole.b.reshape(-1, columns), self.rank)
            change = self.numbers(jnp.stack([_change(edit, (*inner, *outer)) for edit in edits]), weights, key)
            return nearest(change.reshape(rows, columns), self.rank) if factored else change

        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(path.encode()))
        each: Any = merged
        for _ in lead:
            each = functools.partial(jax.lax.map, each)
        made = jax.jit(each)((jax.random.split(key, lead) if lead else key, tuple(edits)))
        if not factored:
            return Insert(made) if isinstance(edits[0], Insert) else Dense(made)
        a, b = made
        return LowRank(a.reshape(*lead, *inner, -1), b.reshape(*lead, -1, *outer), jnp.ones(lead, jnp.float32))

    def numbers(self, changes: Array, weights: Sequence[float], key: Key) -> Array:
        """One matrix from several of its changes, `[deltas, ...]`."""
        weighted = jnp.asarray(weights, jnp.float32).reshape(-1, *(1,) * (changes.ndim - 1))
        if self.how in ("ties", "magnitude"):
            changes = jax.vmap(lambda change: largest(change, self.density))(changes)
        if self.how in ("dare", "dare_ties"):
            changes = dropped(key, changes, self.density)
        if self.how in ("ties", "dare_ties"):
            return agreed(changes, weighted, self.majority)
        return jnp.sum(changes * weighted, axis=0)


def _factors(edits: Sequence[Any], weights: Sequence[float]) -> LowRank | None:
    """The weighted sum as one low-rank update, if it is nothing else."""
    weighted = [algebra.scale({"": edit}, by)[""] for edit, by in zip(edits, weights, strict=True)]
    terms = [term for edit in weighted for term in algebra.terms(edit)]
    return algebra.joined(terms) if all(isinstance(term, LowRank) for term in terms) else None


def _change(edit: Any, shape: tuple[int, ...]) -> Array:
    return dense(edit.value) if isinstance(edit, Insert) else edit.dense(jnp.zeros(shape, jnp.float32), jnp.float32)


def largest(change: Array, density: float) -> Array:
    """The share of the numbers that are largest in size, the others 0; of equal ones those that come first."""
    numbers = change.ravel()
    kept = jnp.argsort(jnp.abs(numbers), descending=True)[: int(density * numbers.size)]
    return jnp.zeros_like(numbers).at[kept].set(numbers[kept]).reshape(change.shape)


def dropped(key: Key, change: Array, density: float) -> Array:
    """A random share of the numbers, divided by that share: in the mean what was there."""
    return jnp.where(jax.random.bernoulli(key, density, change.shape), change / density, 0.0)


def agreed(changes: Array, weights: Array, majority: Majority) -> Array:
    """For every number the mean of those changes that have the elected sign, weighted. It is elected among the changes
    as they are, without weights; 0 votes for neither."""
    signs = jnp.sign(changes)
    votes = jnp.sum(changes if majority == "total" else signs, axis=0)
    same = signs == jnp.where(votes >= 0, 1.0, -1.0)[None]
    return jnp.sum(jnp.where(same, changes * weights, 0.0), axis=0) / jnp.maximum(jnp.sum(same, axis=0), 1)


def nearest(matrix: Array, rank: int) -> tuple[Array, Array]:
    """The factors `[in, rank]` and `[rank, out]` whose product is nearest to a matrix in the sum of squares."""
    left, sizes, right = jnp.linalg.svd(matrix, full_matrices=False)
    root = jnp.sqrt(sizes[:rank])
    return left[:, :rank] * root[None], root[:, None] * right[:rank]


def nearest_to_product(a: Array, b: Array, rank: int) -> tuple[Array, Array]:
    """`nearest(a @ b, rank)` without the product: an orthogonal basis of each factor, and between the two a matrix that
    is as small as the ranks. Of fewer ranks than asked for, all there are."""
    (q, down), (p, up) = jnp.linalg.qr(a), jnp.linalg.qr(b.T)
    left, right = nearest(jnp.matmul(down, up.T, precision=jax.lax.Precision.HIGHEST), rank)
    highest = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return highest(q, left), highest(right, p.T)
