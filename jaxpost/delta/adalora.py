# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates whose ranks are found while training (AdaLoRA, Zhang et al. 2023,
https://arxiv.org/abs/2303.10512)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax
from flax import struct

from jaxpost.arrays import Tree
from jaxpost.delta.bind import Delta
from jaxpost.delta.budget import Budget, allocating
from jaxpost.delta.low_rank import Factors, LowRank, between, down, up
from jaxpost.delta.method import Method
from jaxpost.delta.places import MATRICES, matrices
from jaxpost.faults import Fault
from jaxpost.params import constant, normal


@struct.dataclass
class Svd(Factors):
    """`w + scale * (p * lam) @ q`, with p `[lead, in, r]`, lam `[lead, r]`, q `[lead, r, out]` and scale `[lead]`: a
    singular value decomposition as far as the columns of p and the rows of q are kept orthonormal."""

    p: Any
    lam: Any
    q: Any
    scale: Any
    dropout: float = struct.field(pytree_node=False, default=0.0)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=("scale",))

    def low_rank(self) -> LowRank:
        lam = self.lam.reshape(*self.lam.shape, *(1,) * (self.q.ndim - self.lam.ndim))
        return LowRank(self.p, lam * self.q, self.scale, self.dropout)

    def letters(self, inner: str, outer: str) -> "Svd":
        return self.replace(  # pyright: ignore[reportAttributeAccessIssue]
            p=f"{inner} r", lam="r", q=f"r {outer}", scale=""
        )


@dataclass(frozen=True)
class AdaLora(Method):
    """AdaLoRA on the targets: every matrix starts at `rank`, and step by step the least important of all triplets (a
    singular value and its two vectors) are zeroed, until `target` are left for a matrix on average.

    Importance is a smoothed product of parameter and gradient (`b1`), times its smoothed uncertainty (`b2`). Nothing is
    zeroed in steps 0 to `warmup`; then, every `every` steps, what exceeds a budget that falls as a cube; from `settle`
    steps before the end on what is left stays the same. `orthogonality` weighs the penalty, half of the mean over all p
    and q of `||p^T p - 1||` at 0.5; it is added to the gradients, so losses are told without it. As in PEFT the scale
    is `alpha / (rank + 1e-5)` and a zeroed value may grow again until the next time.
    """

    rank: int = 12
    target: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = MATRICES
    dropout: float = 0.0
    warmup: int = 0
    settle: int = 1
    every: int = 1
    b1: float = 0.85
    b2: float = 0.85
    orthogonality: float = 0.5

    def __call__(self, specs: Tree) -> dict[str, Svd]:
        if not 1 <= self.target <= self.rank:
            raise Fault(f"adalora: target is {self.target}; it must be at least 1 and at most rank, {self.rank}")
        if self.settle < 1 or self.every < 1:
            raise Fault(f"adalora: settle is {self.settle} and every {self.every}; both must be at least 1")
        if self.warmup < 0 or self.orthogonality < 0:
            raise Fault(f"adalora: warmup is {self.warmup} and orthogonality {self.orthogonality}; neither may be "
                        "below 0")  # fmt: skip
        for name in ("b1", "b2", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise Fault(f"adalora: {name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if not (chosen := matrices(specs, self.targets, "adalora targets")):
            raise Fault("adalora: targets name no weight; give at least one, such as q")
        for path, spec in chosen.items():
            if self.rank > (limit := min(math.prod(spec.sizes(1)), math.prod(spec.sizes(2)))):
                raise Fault(f"adalora: rank {self.rank} is above that of {path!r}; choose at most {limit}")
        small, scale = normal(0.02), constant(self.alpha / (self.rank + 1e-5))
        return {
            path: Svd(
                p=down(spec, self.rank, small),
                lam=between(spec, constant(0.0), self.rank),
                q=up(spec, self.rank, small),
                scale=between(spec, scale),
                dropout=self.dropout,
            )
            for path, spec in chosen.items()
        }

    def optimiser(self, inner: optax.GradientTransformation, specs: Tree, steps: int) -> optax.GradientTransformation:
        edits = [edit for edit in specs.values() if isinstance(edit, Svd)]
        number = sum(math.prod(edit.lam.shape[:-1]) for edit in edits)
        budget = Budget(number * self.rank, number * self.target, self.warmup, steps - self.settle, self.every)
        return allocating(inner, budget, self.b1, self.b2, self.orthogonality)

    def facts(self, delta: Delta) -> Mapping[str, str]:
        """The final ranks, by layer."""
        kept = {path: np.asarray(edit.lam) != 0 for path, edit in delta.items() if isinstance(edit, Svd)}
        told = [f"{path} {' '.join(map(str, np.sum(left, -1).reshape(-1)))}" for path, left in kept.items()]
        left, of = (sum(int(count(k)) for k in kept.values()) for count in (np.sum, np.size))
        return {"final ranks": f"{left} of {of}: {', '.join(told)}"}
