# SPDX-License-Identifier: Apache-2.0
"""What the laws run over: every kind of edit, on every kind of base, in every way a weight meets an activation.

A case is random but small. `exact` tells in float64, by formulas written a second time here, what an edited weight
is, and `slack` how far rounding may carry a contraction with it away from that.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jaxpost import delta, params, quant
from jaxpost.delta import Dense, Insert, LowRank, Magnitude, OneBit, Scale, Svd, Vectors
from jaxpost.kernels.ragged_matmul import grouped
from jaxpost.params import ParamSpec, normal
from jaxpost.quant.nf4 import DYNAMIC, LEVELS


@dataclass(frozen=True)
class Use:
    """A weight's axes and what contracts them: an einsum, `None` for rows taken by ids, or `sorted` for rows that each
    meet the weight of their own expert."""

    dims: str
    spec: str | None


USES = {
    "to heads": Use(": d : n h", "bsd,dnh->bsnh"),
    "from heads": Use(": n h : d", "bsnh,nhd->bsd"),
    "plain": Use(": d : f", "bsd, df -> bsf"),
    "experts": Use("e : d : f", "ebsd,edf->ebsf"),
    "sorted experts": Use("e : d : f", "sorted"),
    "table": Use(": v : d", None),
    "tied head": Use(": v : d", "bsd,vd->bsv"),
}

# Sizes all different, one of them 1; and all alike, so that a swapped axis makes no shape error.
SIZES = (
    dict(b=2, s=3, d=4, n=1, h=6, f=5, v=7, e=8, r=2, l=2),
    dict(b=3, s=3, d=3, n=3, h=3, f=3, v=3, e=3, r=3, l=3),
)

W = ("w",)
KINDS: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "lora": lambda specs, rank: delta.Lora(rank, alpha=3.0, targets=W)(specs),
    "rslora16": lambda specs, rank: half(delta.Lora(rank, targets=W, rank_stabilised=True)(specs)),
    "dense": lambda specs, rank: delta.Full(W)(specs),
    "dense16": lambda specs, rank: half(delta.Full(W)(specs)),
    "scale in": lambda specs, rank: delta.Scales(W, "in")(specs),
    "scale out": lambda specs, rank: delta.Scales(W, "out")(specs),
    "one bit": lambda specs, rank: delta.BitDelta(targets=W)(specs),
    "stack": lambda specs, rank: {
        "w": delta.Stack((delta.Lora(rank, targets=W)(specs)["w"], delta.Scales(W)(specs)["w"]))
    },
    "dora": lambda specs, rank: delta.Dora(rank, targets=W)(specs),
    "adalora": lambda specs, rank: delta.AdaLora(rank, 1, targets=W)(specs),
    "vera": lambda specs, rank: delta.Vera(rank + 2, targets=W)(specs),
}
"""Every kind of edit of a weight that is there. `Insert` is a kind of base: the other edits go on top of it."""

FORMATS: dict[str, quant.Format] = {
    "int8": quant.Int8(),
    "int4": quant.Int4(group=3),
    "nf4": quant.Nf4(block=4, lookup="take"),
    "nf4 single": quant.Nf4(double=False, block=3),
    "fp8": quant.Fp8(),
}
"""With blocks so small that weights of these sizes have several, the last one not full."""

BASES = ("float32", "bfloat16", *FORMATS, "inserted")


@dataclass(frozen=True)
class Case:
    use: str
    sizes: int
    base: str
    kinds: tuple[str, ...]
    dtype: str
    magnitude: float
    seed: int

    @property
    def size(self) -> dict[str, int]:
        return SIZES[self.sizes]

    def specs(self, layers: bool = False, optional: bool = False) -> dict[str, ParamSpec]:
        dims = ("l " if layers else "") + USES[self.use].dims
        shape = tuple(self.size[letter] for letter in dims.replace(":", " ").split())
        dtype = jnp.bfloat16 if self.base == "bfloat16" else jnp.float32
        return {"w": ParamSpec(shape, dims, normal(self.magnitude), dtype, optional)}

    def params(self, layers: bool = False) -> dict[str, Any]:
        if self.base == "inserted":
            return {"w": None}
        specs = self.specs(layers)
        weights = self.weights(specs)
        if self.base not in FORMATS:
            return weights
        return jax.jit(lambda weights: quant.quantise_tree(weights, specs, FORMATS[self.base], W))(weights)

    def weights(self, specs: dict[str, ParamSpec]) -> dict[str, jax.Array]:
        """Drawn by numpy: a program for each shape would take longer than the laws themselves."""
        shape, dtype = specs["w"].shape, specs["w"].dtype
        drawn = np.random.default_rng([self.seed, 0]).normal(0, self.magnitude, shape)
        return {"w": jnp.asarray(drawn.astype(dtype))}

    def deltas(self, layers: bool = False, fresh: bool = False) -> list[dict[str, Any]]:
        """The edits one after the other: as their own initialisers start them, or with random values in all fields."""
        specs, done = self.specs(layers), []
        if self.base == "inserted":
            done.append({"w": Insert(self.weights(specs)["w"])})
        for i, kind in enumerate(self.kinds):
            made = KINDS[kind](specs, self.size["r"])
            if not fresh:
                done.append(randomised(params.abstract(made), self.seed + i))
                continue
            start = params.init(made, jax.random.key(self.seed + i))
            if kind == "dora":
                under = bound(self.params(layers), done)
                start = delta.Dora(targets=W).start(start, delta.Given(under, jax.random.key(0)))
            done.append(start)
        return done

    def x(self) -> jax.Array:
        rng = np.random.default_rng(self.seed)
        spec = USES[self.use].spec
        if spec is None:
            shape = (self.size["b"], self.size["s"])
            return jnp.asarray(rng.integers(0, self.size["v"], shape), jnp.int32)
        shape = [self.size[letter] for letter in ("bsd" if spec == "sorted" else spec.split(",")[0])]
        shape = [shape[0] * shape[1], shape[2]] if spec == "sorted" else shape
        return jnp.asarray(rng.normal(size=shape).astype(jnp.dtype(self.dtype)))

    def experts(self) -> np.ndarray:
        """The expert of each row: some have none, some several."""
        return np.random.default_rng(self.seed).integers(0, self.size["e"], self.size["b"] * self.size["s"])

    def contract(self, x: jax.Array, w: Any) -> jax.Array:
        spec = USES[self.use].spec
        if spec == "sorted":
            groups = grouped(jnp.asarray(self.experts()), self.size["e"])
            return delta.ragged(groups.lay(x), w, groups)[groups.place]
        return delta.take(w, x, jnp.dtype(self.dtype)) if spec is None else delta.einsum(spec, x, w)


def half(specs: Any) -> Any:
    """The same edits stored in 16 bits."""
    return jax.tree.map(lambda spec: replace(spec, dtype=jnp.bfloat16), specs)


def randomised(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def leaf(old: Any) -> jax.Array:
        if jnp.issubdtype(old.dtype, jnp.integer):
            return jnp.asarray(rng.integers(0, 256, old.shape), old.dtype)
        return jnp.asarray(rng.normal(size=old.shape).astype(old.dtype))

    return jax.tree.map(leaf, tree)


def cases(
    bases: tuple[str, ...] = BASES,
    kinds: tuple[str, ...] = tuple(KINDS),
    most: int = 3,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        use=st.sampled_from(sorted(USES)),
        sizes=st.integers(0, len(SIZES) - 1),
        base=st.sampled_from(bases),
        kinds=st.lists(st.sampled_from(kinds), min_size=1, max_size=most).map(tuple),
        dtype=st.sampled_from(dtypes),
        magnitude=st.sampled_from([0.02, 1.0, 30.0]),
        seed=st.integers(0, 2**16),
    )


def bound(base: Any, deltas: list[Any]) -> Any:
    for edits in deltas:
        base = delta.bind(base, edits)
    return base


def folded(base: Any, deltas: list[Any]) -> Any:
    for edits in deltas:
        base = delta.fold(base, edits)
    return base


def wide(x: Any) -> np.ndarray:
    return np.asarray(jnp.asarray(x, jnp.float32), np.float64)


def exact(base: Any, deltas: list[Any], dims: str) -> tuple[np.ndarray, np.ndarray]:
    """The edited weight in float64, and the same with every term made positive: the scale of its rounding errors."""
    w = base["w"]
    whole, size = decoded(w, dims) if isinstance(w, quant.QArray) else (None if w is None else wide(w),) * 2
    size = None if size is None else np.abs(size)
    lead, inner, outer = ("".join(group.split()) for group in dims.split(":"))
    for edit in flat(edits["w"] for edits in deltas):
        match edit:
            case Insert():
                whole, size = wide(edit.value), np.abs(wide(edit.value))
            case Dense():
                whole, size = whole + wide(edit.dw), size + np.abs(wide(edit.dw))
            case Scale():
                whole, size = whole * wide(edit.s), size * np.abs(wide(edit.s))
            case OneBit():
                rows = np.unpackbits(np.asarray(edit.bits.codes), axis=len(lead), bitorder="little")
                rows = rows.take(range(np.prod(edit.bits.format.inner)), axis=len(lead))
                scale = wide(edit.scale).reshape(*edit.scale.shape, *(1,) * len(inner + outer))
                whole = whole + scale * np.where(rows, 1.0, -1.0).reshape(whole.shape)
                size = size + np.abs(scale)
            case LowRank():
                spec = f"{lead}{inner}R,{lead}R{outer},{lead}->{lead}{inner}{outer}"
                factors = wide(edit.a), wide(edit.b), wide(edit.scale)
                whole = whole + np.einsum(spec, *factors)
                size = size + np.einsum(spec, *map(np.abs, factors))
            case Svd():
                spec = f"{lead}{inner}R,{lead}R,{lead}R{outer},{lead}->{lead}{inner}{outer}"
                factors = wide(edit.p), wide(edit.lam), wide(edit.q), wide(edit.scale)
                whole = whole + np.einsum(spec, *factors)
                size = size + np.einsum(spec, *map(np.abs, factors))
            case Vectors():
                spec = f"{lead}{inner}R,{lead}R,{lead}R{outer},{lead}{outer}->{lead}{inner}{outer}"
                factors = wide(edit.a), wide(edit.d), wide(edit.b), np.squeeze(wide(edit.s), len(lead))
                whole = whole + np.einsum(spec, *factors)
                size = size + np.einsum(spec, *map(np.abs, factors))
            case Magnitude():
                axes, m = tuple(range(len(lead), len(lead + inner))), np.abs(wide(edit.m))
                norm, room = (np.sqrt(np.sum(x**2, axes, keepdims=True)) for x in (whole, size))
                whole, size = wide(edit.m) * whole / norm, m * (size / norm + np.abs(whole) * room / norm**2)
    return whole, size


def decoded(q: quant.QArray, dims: str) -> tuple[np.ndarray, np.ndarray]:
    """What a quantised weight stands for, and the scale of its rounding errors."""
    if not isinstance(q.format, quant.Int4 | quant.Nf4):
        return (wide(q.codes) * wide(q.scales["scale"]),) * 2
    inner, outer = (len(group.split()) for group in dims.split(":")[1:])
    codes = np.asarray(q.codes)
    first, last = codes.ndim - outer - inner, codes.ndim - outer - 1
    if codes.dtype == np.uint8:  # the even rows of the last in axis in the high halves of bytes
        codes = np.repeat(codes, 2, last) // np.resize([16, 1], 2 * codes.shape[last]).reshape(-1, *(1,) * outer) % 16
    scales = {name: wide(x) for name, x in q.scales.items()}
    if isinstance(q.format, quant.Int4):
        levels, block, scale = codes - 8.0, q.format.group, scales["scale"]
        most = scale
    else:
        levels, block, scale = LEVELS.astype(float)[codes], q.format.block, scales["absmax"]
        most = scale
        if q.format.double:
            assert scale[(0,) * first].size <= 256  # so that there is one nested number a matrix
            one = (..., *(None,) * (scale.ndim - first))
            scale = DYNAMIC.astype(float)[scale.astype(int)] * scales["nested"][..., 0][one]
            most, scale = np.abs(scale) + scales["offset"][one], scale + scales["offset"][one]

    def rows(x: np.ndarray) -> np.ndarray:
        whole = np.repeat(x, block, first)
        count = int(np.prod(codes.shape[first : last + 1]))
        return np.take(whole, range(count), first).reshape(codes.shape)

    return levels * rows(scale), levels * rows(most)


def flat(edits: Iterable[Any]) -> Iterator[Any]:
    """The edits with those that others are made of in their place."""
    for edit in edits:
        yield from flat(edit.edits) if isinstance(edit, delta.Stack) else (edit,)


def applied(case: Case, w: np.ndarray) -> np.ndarray:
    """The contraction in float64."""
    return _contracted(case, wide(case.x()), w)


def _contracted(case: Case, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    spec = USES[case.use].spec
    if spec is None:
        return w[x.astype(int)]
    if spec == "sorted":
        return np.einsum("td,tdf->tf", x, w[case.experts()])
    return np.einsum(spec.replace(" ", ""), x, w)


def slack(case: Case, size: np.ndarray) -> np.ndarray:
    """Rounding error that a contraction may have: some units in the last place of the sum of all terms' sizes."""
    terms = _contracted(case, np.abs(wide(case.x())), size)
    return terms * (2.0**-20 if case.dtype == "float32" else 2.0**-6) + 1e-30
