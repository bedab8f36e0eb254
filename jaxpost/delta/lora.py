# SPDX-License-Identifier: Apache-2.0
"""Tuning by low-rank updates (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685), and what grew around it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np
import optax

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.delta.biases import BitFit
from jaxpost.delta.bind import Delta
from jaxpost.delta.contract import Weight
from jaxpost.delta.inits import FROM_WEIGHT, Start, columns, decomposed, each, rows, uniform
from jaxpost.delta.low_rank import LowRank, between, down, up
from jaxpost.delta.method import Given, Method
from jaxpost.delta.places import MATRICES, by_layer, matrices, over_lead
from jaxpost.delta.stack import Stack
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, constant


@dataclass(frozen=True)
class Lora(Method):
    """LoRA on the targets: `Lora(rank=16)(specs)` is a delta of specs, with `scale = alpha / rank`, or `alpha /
    sqrt(rank)` when rank-stabilised (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).

    The targets, unless given, are those of `MATRICES` that the model has. `ranks` and `alphas` differ by layer and
    place: the first pattern counts that a name such as `layers/3/attn/q` matches. Layers of lower rank than others of
    their stack are padded: where a and b are both zero neither has a gradient, so they stay zero.

    b starts as zero, a as N(0, 1/rank^2) (`gaussian`) or U(-1/sqrt(in), 1/sqrt(in)) (`kaiming`); of tables of
    embeddings a is zero and b N(0, 1). So a fresh delta changes nothing. `pissa` and `olora` start at a part of the
    weight, which a fixed update below takes off: the base stays what it is for others. `biases` trains those that the
    model has too. `b_ratio` is how many times larger the learning rate of b is (LoRA+, Hayou et al. 2024,
    https://arxiv.org/abs/2402.12354).

    Raises `Fault` for targets that match no weight, or one that is no map (a norm, a bias), and for a rank above the
    smaller side of a matrix.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = MATRICES
    dropout: float = 0.0
    rank_stabilised: bool = False
    init: Start = "gaussian"
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    biases: Literal["none", "all"] = "none"
    b_ratio: float = 1.0

    def __call__(self, specs: Tree) -> dict[str, Any]:
        if not 0 <= self.dropout < 1:
            raise Fault(f"lora: dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.b_ratio <= 0:
            raise Fault(f"lora: b_ratio is {self.b_ratio}; it must be above 0 (1: b learns as fast as a)")
        chosen = matrices(specs, self.targets, "lora targets")
        if not chosen and self.biases == "none":
            raise Fault("lora: targets name no weight; give at least one, such as q")
        ranks = by_layer(chosen, self.ranks, self.rank, "lora.ranks")
        alphas = by_layer(chosen, self.alphas, self.alpha, "lora.alphas")
        made = {path: self._edit(path, spec, ranks[path], alphas[path]) for path, spec in chosen.items()}
        return made | (BitFit()(specs) if self.biases == "all" else {})

    def _edit(self, path: str, spec: ParamSpec, ranks: tuple[int, ...], alphas: tuple[float, ...]) -> Any:
        into, out = math.prod(spec.sizes(1)), math.prod(spec.sizes(2))
        least, most = min(ranks), max(ranks)
        if least < 1:
            raise Fault(f"lora: rank is {least} for {path!r}; it must be at least 1")
        if min(alphas) <= 0:
            raise Fault(f"lora: alpha is {min(alphas)} for {path!r}; it must be above 0, or nothing is learned")
        if most > min(into, out):
            raise Fault(f"lora: rank {most} for {path!r}, a matrix of {into} x {out}; choose at most {min(into, out)}")
        rank = over_lead(ranks, spec)
        used = np.arange(most) < rank[..., None]
        a, b = columns(used / rank[..., None]), constant(0.0)
        if self.init == "kaiming":
            a = columns(used / math.sqrt(into), uniform)
        if spec.groups[1] in (("v",), ("p",)) and self.init not in FROM_WEIGHT:  # looked up, not contracted
            a, b = constant(0.0), rows(used)
        padding = np.sum(~used, axis=tuple(range(1, used.ndim)) or None).reshape(-1).tolist()
        scale = over_lead(alphas, spec) / (np.sqrt(rank) if self.rank_stabilised else rank)
        edit = LowRank(
            down(spec, most, a, padding), up(spec, most, b, padding), between(spec, each(scale)), self.dropout
        )
        if self.init not in FROM_WEIGHT:
            return edit
        off = replace(edit, scale=between(spec, each(-scale)), dropout=0.0, fixed=("a", "b", "scale"))
        return Stack((off, edit))

    def start(self, delta: Delta, given: Given) -> Delta:
        if self.init not in FROM_WEIGHT:
            return delta
        flat = trees.flatten(given.base)
        return {path: self._begun(edit, flat[path]) if path in flat else edit for path, edit in delta.items()}

    def _begun(self, edit: Any, w: Weight) -> Any:
        if not isinstance(edit, Stack):
            return edit
        off, on, *rest = edit.edits
        on = decomposed(FROM_WEIGHT[self.init], w, on)
        edits = (off.replace(a=on.a, b=on.b), on, *rest)
        return edit.replace(edits=edits)  # pyright: ignore[reportAttributeAccessIssue]

    def optimiser(self, inner: optax.GradientTransformation, specs: Tree, steps: int) -> optax.GradientTransformation:
        if self.b_ratio == 1.0:
            return inner
        ratios = jax.tree_util.tree_map_with_path(
            lambda path, _: self.b_ratio if trees.path_of(path).endswith("/b") else 1.0, specs
        )
        # Behind the optimiser, so that the rate is larger, not the gradient (which Adam would divide out again).
        faster = optax.stateless(lambda updates, _: jax.tree.map(lambda u, ratio: u * ratio, updates, ratios))
        return optax.chain(inner, faster)
