# SPDX-License-Identifier: Apache-2.0
"""Small models' weights and deltas over them, drawn at random: what the tests of arithmetic with deltas share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jaxpost import delta, params, quant, trees
from jaxpost.delta import Dense, Insert, LowRank, OneBit, Stack
from jaxpost.params import ParamSpec, normal
from jaxpost.quant.sign import Sign

SPECS: dict[str, Any] = {
    "embed": ParamSpec((7, 4), ": v : d", normal(1.0)),
    "layers": {
        "q": ParamSpec((2, 4, 3, 2), "l : d : n h", normal(1.0)),
        "up": ParamSpec((2, 3, 4, 5), "l e : d : f", normal(1.0)),
        "norm": ParamSpec((2, 4), "l : : d", normal(1.0)),
        "q_bias": ParamSpec((2, 3, 2), "l : : n h", normal(1.0), optional=True),
    },
}
FLAT = trees.flatten(SPECS)
MATRICES = ("embed", "layers/q", "layers/up")
EVERY = ("lora", "dense", "bits", "both")

kinds = st.dictionaries(st.sampled_from(MATRICES), st.sampled_from(EVERY), min_size=1)
"""Which kind of additive edit lies on which matrix."""


def numbers(rng: np.random.Generator, shape: Any) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def base(seed: int = 0) -> dict[str, Any]:
    return params.init(SPECS, jax.random.key(seed))


def edit(path: str, kind: str, rng: np.random.Generator) -> Any:
    spec = FLAT[path]
    lead, inner, outer = (spec.sizes(group) for group in range(3))
    if kind == "lora":
        rank = 2  # every other one is another program to compile
        return LowRank(numbers(rng, (*lead, *inner, rank)), numbers(rng, (*lead, rank, *outer)), numbers(rng, lead))
    if kind == "bits":
        return OneBit(quant.quantise(numbers(rng, spec.shape), spec, Sign()), numbers(rng, lead))
    if kind == "both":
        return Stack((edit(path, "dense", rng), edit(path, "lora", rng)))
    return Dense(numbers(rng, spec.shape))


def drawn(chosen: dict[str, str], seed: int, others: bool = True) -> dict[str, Any]:
    """A delta of these kinds; with `others` on a norm too, and filling a bias."""
    rng = np.random.default_rng(seed)
    made = {path: edit(path, kind, rng) for path, kind in chosen.items()}
    if others:
        made["layers/norm"] = edit("layers/norm", "dense", rng)
        made["layers/q_bias"] = Insert(numbers(rng, FLAT["layers/q_bias"].shape))
    return made


def change(made: Any, weights: Any = None) -> dict[str, np.ndarray]:
    """What a delta changes every weight by, zeros where it changes nothing, in float64."""
    weights = base() if weights is None else weights
    before, after = trees.flatten(weights), trees.flatten(delta.fold(weights, made))
    found = {}
    for path, spec in FLAT.items():
        old = np.zeros(spec.shape) if before[path] is None else np.asarray(before[path], np.float64)
        found[path] = (np.zeros(spec.shape) if after[path] is None else np.asarray(after[path], np.float64)) - old
    return found


def close(one: Any, other: Any, slack: float = 2e-5) -> None:
    for path in FLAT:
        np.testing.assert_allclose(one[path], other[path], rtol=0, atol=slack * (1 + np.abs(other[path]).max()))
