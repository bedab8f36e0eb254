# SPDX-License-Identifier: Apache-2.0
"""A whole small decoder under every kind of edit, for laws that must hold through all of it."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost import delta, params, quant, trees
from jaxpost.delta import Insert
from jaxpost.kernels.attention import Rows
from jaxpost.kernels.linear_xent import linear_xent
from jaxpost.losses import cross_entropy
from jaxpost.models import decoder
from jaxpost.models.architecture import Decoder, Experts, Layer
from jaxpost.models.rope import Rope
from tests.laws.cases import randomised

BATCH, LENGTH = 8, 5
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


PLAIN: dict[str, Any] = dict(vocab=14, d=8, layers=2, heads=4, kv_heads=2, head_size=4, ffn=12)
FAMILIES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    # Everything that Gemma 2 and 3 have of their own; two whole periods and a tail.
    "windows": PLAIN
    | dict(layers=5, pattern=(Layer(window=2, rope=Rope(50.0)), Layer()), norm="offset", post_norms=True, qk_norm=True)
    | dict(activation="gelu_tanh", embed_scale=8**0.5, attn_scale=0.3, attn_cap=2.0, logit_cap=5.0),
    "experts": PLAIN | dict(layers=3, experts=Experts(4, 2, 6), pattern=(Layer(), Layer(dense=True))),
    "learned positions": PLAIN | dict(rope=None, norm="layer", gated=False, activation="gelu", max_length=LENGTH),
}


def small(tied: bool = False, dtype: str = "float32", family: str = "plain") -> Decoder:
    return Decoder(**FAMILIES[family], tied=tied, dtype=dtype)


def biases(specs: Any) -> dict[str, Insert]:
    """Fills every bias slot."""
    return {
        path: Insert(replace(spec, optional=False))
        for path, spec in trees.flatten(specs).items()
        if spec.optional and path.endswith("_bias")
    }


def matrices(specs: Any) -> tuple[str, ...]:
    return tuple(name for name in MATRICES if any(trees.matches(path, name) for path in trees.flatten(specs)))


def ends(specs: Any) -> tuple[str, ...]:
    return ("embed",) if specs["head"].optional else ("embed", "head")


STACKS: dict[str, Callable[[Any], list[dict[str, Any]]]] = {
    "lora": lambda specs: [delta.Lora(rank=3, targets=(*matrices(specs), *ends(specs)))(specs)],
    "full": lambda specs: [delta.Full()(specs)],
    "scales": lambda specs: [delta.Scales(("k", "v", *ends(specs)))(specs) | delta.Scales(("down",), "in")(specs)],
    "inserts": lambda specs: [biases(specs)],
    "all of it": lambda specs: [
        biases(specs),
        delta.Full(("down", "norm", *ends(specs)))(specs),
        delta.Lora(rank=2, targets=("q", "down", *ends(specs)))(specs),
        delta.Scales(("q", *ends(specs)), "in")(specs),
    ],
}
BASES = ("float32", "bfloat16", "int8")


def base_of(config: Decoder, kind: str) -> Any:
    """Weights large enough that every one of them matters to the logits."""
    specs = decoder.specs(config)
    weights = jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, params.init(specs, jax.random.key(0)))
    return (
        quant.quantise_tree(weights, specs, quant.Int8(), ("layers/*", "head", "embed")) if kind == "int8" else weights
    )


def stack_of(config: Decoder, name: str, fresh: bool = False) -> list[dict[str, Any]]:
    stack = [params.init(edits, jax.random.key(i)) for i, edits in enumerate(STACKS[name](decoder.specs(config)))]
    if fresh:
        return stack
    shifted = [jax.tree.map(lambda a, b: a + 0.1 * b, edits, randomised(edits, 5 + i)) for i, edits in enumerate(stack)]
    return shifted


def batch() -> dict[str, jax.Array]:
    """Two examples and some padding in every row."""
    rng = np.random.default_rng(0)
    segments = np.tile(np.array([1, 1, 2, 2, 0], np.int32), (BATCH, 1))
    return {
        "tokens": jnp.asarray(rng.integers(0, 14, (BATCH, LENGTH)), jnp.int32),
        "targets": jnp.asarray(rng.integers(0, 14, (BATCH, LENGTH)), jnp.int32),
        "mask": jnp.asarray(rng.integers(0, 2, (BATCH, LENGTH)) * (segments > 0), jnp.float32),
        "segments": jnp.asarray(segments),
        "positions": jnp.tile(jnp.array([0, 1, 0, 1, 0], jnp.int32), (BATCH, 1)),
    }


@functools.partial(jax.jit, static_argnums=0)
def logits(config: Decoder, weights: Any, batch: dict[str, jax.Array]) -> jax.Array:
    return decoder.logits(config, weights, batch["tokens"], Rows(batch["segments"], batch["positions"]))


def join(base: Any, trainable: list[Any], fixed: list[Any], lay: Callable[[Any, Any], Any] = delta.bind) -> Any:
    for pair in zip(trainable, fixed, strict=True):
        base = lay(base, delta.combine(*pair))
    return base


def loss(config: Decoder, weights: Any, batch: dict[str, jax.Array], remat: Any = "none") -> jax.Array:
    """The mean loss of the masked tokens, through the fused head."""
    rows = Rows(batch["segments"], batch["positions"])
    hidden, _ = decoder.trunk(config, weights, decoder.embed(config, weights, batch["tokens"]), rows, remat=remat)
    scale = batch["mask"] / jnp.sum(batch["mask"])
    part = decoder.head_weights(config, weights)
    return linear_xent(decoder.contract_head(config), cross_entropy, part, hidden, batch["targets"], scale, chunk=8)[0]


def unbind(weights: Any, dtype: Any = jnp.float32) -> Any:
    """A bound tree with every edit and quantised leaf made plain."""
    flat = trees.flatten(weights)
    return trees.unflatten({path: None if w is None else delta.dense(w, dtype) for path, w in flat.items()})
