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
from tests.laws.cases import FORMATS, randomised

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
    "places": lambda specs: [delta.Prompt(2)(specs) | delta.Prefix(2)(specs)],
    "adapters": lambda specs: [delta.Adapters("houlsby", reduction=4)(specs)],
    "factors": lambda specs: [
        delta.Dora(rank=2, targets=("q", "o", "down"))(specs)
        | delta.AdaLora(3, 2, targets=("k", "v", *ends(specs)))(specs)
        | delta.Vera(5, targets=("up",))(specs)
        | {path: edit for path, edit in delta.BitDelta(targets=("gate",))(specs).items() if path.endswith("gate")}
    ],
    "all of it": lambda specs: [
        biases(specs)
        | delta.Adapters("parallel", reduction=2, activation="gelu")(specs)
        | delta.Prompt(2)(specs)
        | delta.Prefix(2)(specs),
        delta.Full(("down", "norm", *ends(specs)))(specs),
        delta.Lora(rank=2, targets=("q", "down", *ends(specs)))(specs),
        delta.Scales(("q", *ends(specs)), "in")(specs),
    ],
}
BASES = ("float32", "bfloat16", "int8", "int4", "nf4", "fp8")


@functools.cache
def base_of(config: Decoder, kind: str) -> Any:
    """Weights large enough that every one of them matters to the logits."""
    specs = decoder.specs(config)

    @jax.jit
    def make() -> Any:
        weights = jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, params.init(specs, jax.random.key(0)))
        if kind not in FORMATS:
            return weights
        return quant.quantise_tree(weights, specs, FORMATS[kind], ("layers/*", "head", "embed"))

    return make()


def stack_of(config: Decoder, name: str, fresh: bool = False, base: Any = None) -> list[dict[str, Any]]:
    """With random values, or `fresh`, as the edits start over that base."""
    stack = [params.init(edits, jax.random.key(i)) for i, edits in enumerate(STACKS[name](decoder.specs(config)))]
    if fresh:
        return [delta.Dora().start(edits, delta.Given(base, jax.random.key(0))) for edits in stack]

    def shifted(a: Any, b: Any) -> Any:
        return b if jnp.issubdtype(a.dtype, jnp.integer) else a + 0.1 * b

    return [jax.tree.map(shifted, edits, randomised(edits, 5 + i)) for i, edits in enumerate(stack)]


def batch() -> dict[str, jax.Array]:
    """Two examples and some padding in every row; some tokens are places of a prompt or prefix."""
    rng = np.random.default_rng(0)
    segments = np.tile(np.array([1, 1, 2, 2, 0], np.int32), (BATCH, 1))
    tokens = rng.integers(0, 14, (BATCH, LENGTH))
    tokens[:, 0], tokens[::2, 2] = -1, -2
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "targets": jnp.asarray(rng.integers(0, 14, (BATCH, LENGTH)), jnp.int32),
        "mask": jnp.asarray(rng.integers(0, 2, (BATCH, LENGTH)) * (segments > 0), jnp.float32),
        "segments": jnp.asarray(segments),
        "positions": jnp.tile(jnp.array([0, 1, 0, 1, 0], jnp.int32), (BATCH, 1)),
    }


@functools.partial(jax.jit, static_argnums=0)
def logits(config: Decoder, weights: Any, batch: dict[str, jax.Array]) -> jax.Array:
    return decoder.logits(config, weights, batch["tokens"], places_of(batch))


def places_of(batch: dict[str, jax.Array]) -> Rows:
    return decoder.rows(batch["tokens"], batch["segments"], batch["positions"])


def join(base: Any, trainable: list[Any], fixed: list[Any], lay: Callable[[Any, Any], Any] = delta.bind) -> Any:
    for pair in zip(trainable, fixed, strict=True):
        base = lay(base, delta.combine(*pair))
    return base


def loss(config: Decoder, weights: Any, batch: dict[str, jax.Array], remat: Any = "none") -> jax.Array:
    """The mean loss of the masked tokens, through the fused head."""
    rows = places_of(batch)
    hidden, _ = decoder.trunk(config, weights, decoder.embed(config, weights, batch["tokens"]), rows, remat=remat)
    scale = batch["mask"] / jnp.sum(batch["mask"])
    part = decoder.head_weights(config, weights)
    return linear_xent(decoder.contract_head(config), cross_entropy, part, hidden, batch["targets"], scale, chunk=8)[0]


def unbind(weights: Any, dtype: Any = jnp.float32) -> Any:
    """A bound tree with every edit and quantised leaf made plain."""

    def plain(w: Any) -> Any:
        if w is None or (isinstance(w, delta.Bound) and w.w is None):  # what stands in the stream is no weight
            return None if w is None else w.edit
        return delta.dense(w, dtype)

    return trees.unflatten({path: plain(w) for path, w in trees.flatten(weights).items()})
