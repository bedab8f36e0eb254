# SPDX-License-Identifier: Apache-2.0
"""One decoder for every decoder-only family: blocks of grouped-query attention and an MLP or a mixture of them.

What a family has of its own is said by its `Decoder`. `embed`, `trunk` and `head` are apart, so that what stands
between them (soft prompts, noise, a value head) is composition.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpost import trees
from jaxpost.arrays import Array, Float, Int, Tree, tied
from jaxpost.delta import constrain_weights, einsum, formed, plus, take, through
from jaxpost.kernels.attention import Rows, attention
from jaxpost.kernels.decode_attention import Cached, decode_attention
from jaxpost.models.architecture import Decoder as Decoder
from jaxpost.models.architecture import Layer, blocks, is_stacked
from jaxpost.models.architecture import specs as specs
from jaxpost.models.experts import mixture
from jaxpost.models.remat import Remat, rematerialised
from jaxpost.models.rope import Rope, Turns, rotate
from jaxpost.shard import RULES, Rules, constrain

Kept = dict[str, tuple[Array, Array]]
"""Keys and values `[l, b, s, k, h]` of the tokens just seen, under the paths of the blocks that they are from."""

_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def rows(
    tokens: Int[Array, "b s"], segments: Int[Array, "b s"], positions: Int[Array, "b s"], most: int | None = None
) -> Rows:
    """The rows that these tokens are: ids below zero reserve places for a prompt or prefix, -1 for its first row."""
    return Rows(segments, positions, most, jnp.maximum(-tokens, 0))


def embed(config: Decoder, weights: Tree, tokens: Int[Array, "b s"], rules: Rules = RULES) -> Array:
    """Token embeddings `[b, s, d]` in the config's type, which is the one that the trunk then computes in, and the
    prompt's rows where ids are below zero."""
    x = take(weights["embed"], jnp.maximum(tokens, 0), jnp.dtype(config.dtype))
    # The factor is rounded like the numbers that it multiplies: so Gemma was trained.
    x = x if config.embed_scale == 1.0 else x * jnp.asarray(config.embed_scale, x.dtype)
    if weights["prompt"] is not None:
        x = jnp.where((tokens < 0)[..., None], take(weights["prompt"], jnp.maximum(-1 - tokens, 0), x.dtype), x)
    return constrain(x, "b s d", rules)


def trunk(
    config: Decoder,
    weights: Tree,
    x: Float[Array, "b s d"],
    rows: Rows,
    cached: Mapping[str, Cached] | None = None,
    keep: bool = False,
    remat: Remat = "none",
    rules: Rules = RULES,
) -> tuple[Float[Array, "b s d"], Kept | None]:
    """All blocks and the last norm: hidden states `[b, s, d]`, and the tokens' own keys and values if asked to `keep`
    them.

    `cached` holds the blocks' earlier keys and values: stacks, and in `layer` `[l]` where in them the block's layers
    are; the rows are one example's next tokens each then. It is read, never written: whoever owns the cache writes all
    layers' new entries at once afterwards.
    """
    if config.rope is None:
        x = x + take(weights["positions"], rows.positions, x.dtype)
    make = _Blocks(config, rows, rules, keep, remat)
    run = {path: make(path, config.layer(numbers[0])) for path, numbers in blocks(config).items()}

    def through(path: str, x: Array, w: Tree, layer: Any) -> tuple[Array, Any]:
        return run[path](x, (w, None if cached is None else replace(cached[path], layer=layer)))

    def period(x: Array, parts: Tree) -> tuple[Array, Tree]:
        own = {}
        for path in filter(is_stacked, run):
            x, own[path] = through(path, x, *parts[path])
        return x, own

    parts = {path: (_at(weights, path), None if cached is None else cached[path].layer) for path in run}
    kept: Kept = {}
    if stacked := {path: part for path, part in parts.items() if is_stacked(path)}:
        x, kept = jax.lax.scan(period, x, stacked)
    for path, (w, layer) in parts.items():
        if not is_stacked(path):
            x, own = through(path, x, w, None if layer is None else layer[0])
            kept[path] = jax.tree.map(lambda new: new[None], own)
    return norm(config, x, weights, "norm"), kept if keep else None


class _Blocks:
    """The blocks of one pass over some rows: what all layers share is made once."""

    def __init__(self, config: Decoder, rows: Rows, rules: Rules, keep: bool, remat: Remat):
        self.config, self.rows, self.rules, self.keep = config, rows, rules, keep
        self.remat: Remat = remat
        self.specs = specs(config)
        self.turns: dict[Rope, Turns] = {}
        for rope in filter(None, {layer.rope or config.rope for layer in config.pattern}):
            lengths = example_lengths(rows) if rope.by_length else None
            self.turns[rope] = rope.turns(rows.positions, lengths, config.head_size)

    def __call__(self, path: str, layer: Layer) -> Callable[[Array, tuple[Tree, Cached | None]], tuple[Array, Any]]:
        block_specs = trees.flatten(_at(self.specs, path))
        config, rules = self.config, self.rules
        rope = layer.rope or config.rope
        turns = None if rope is None else self.turns[rope]

        def block(x: Array, inputs: tuple[Tree, Cached | None]) -> tuple[Array, Any]:
            w, seen = inputs
            w = constrain_weights(w, block_specs, rules)
            own = norm(config, x, w, "attn_norm")
            y, kv = _attend(config, layer, w["attn"], own, turns, self.rows, seen, rules)
            y = through(y, w["attn"]["adapter"], own, x)
            y = norm(config, y, w, "attn_post_norm") if config.post_norms else y
            x = checkpoint_name(constrain(x + y, "b s d", rules), "mid")
            own = norm(config, x, w, "mlp_norm")
            act = _ACTIVATIONS[config.activation]
            if config.experts and not layer.dense:
                y = mixture(config.experts, act, w["mlp"], block_specs, own, rules)
            else:
                y = _mlp(config, act, w["mlp"], own, rules)
            y = through(y, w["mlp"]["adapter"], own, x)
            y = norm(config, y, w, "mlp_post_norm") if config.post_norms else y
            return constrain(x + y, "b s d", rules), kv if self.keep else None

        return rematerialised(block, self.remat)


def head(config: Decoder, weights: Tree, hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
    """Logits. Apply `head_weights` first where only the head's part of the tree may travel."""
    return contract_head(config)(hidden, head_weights(config, weights))


def head_weights(config: Decoder, weights: Tree) -> dict[str, Any]:
    """The head's own part of the tree: the tied embedding, or the separate matrix. Logits are made chunk by chunk, so
    dense edits are added up here, once."""
    name = "embed" if config.tied else "head"
    return {name: formed(weights[name], jnp.dtype(config.dtype))}


def contract_head(config: Decoder) -> Callable[[Float[Array, "b s d"], Mapping[str, Any]], Float[Array, "b s v"]]:
    """The function from hidden states and the head's own part of the tree to logits."""

    def contract(hidden: Float[Array, "b s d"], part: Mapping[str, Any]) -> Float[Array, "b s v"]:
        if "embed" in part:
            scores = einsum("bsd,vd->bsv", hidden, part["embed"])
        else:
            scores = einsum("bsd,dv->bsv", hidden, part["head"])
        return scores if config.logit_cap is None else config.logit_cap * jnp.tanh(scores / config.logit_cap)

    return contract


def logits(config: Decoder, weights: Tree, tokens: Int[Array, "b s"], rows: Rows) -> Float[Array, "b s v"]:
    """The whole model, for callers that want all logits at once."""
    hidden, _ = trunk(config, weights, embed(config, weights, tokens), rows)
    return head(config, weights, hidden)


def norm(config: Decoder, x: Float[Array, "... d"], weights: Tree, name: str) -> Float[Array, "... d"]:
    """The norm of that name, in float32: root mean square (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467),
    with its weights counted from zero or from one, or layer norm (https://arxiv.org/abs/1607.06450)."""
    wide = x.astype(jnp.float32)
    if config.norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + config.norm_eps)
    scaled = einsum("...d,d->...d", wide, weights[name])
    if config.norm == "offset":
        scaled = wide + scaled
    if config.norm == "layer":
        scaled = plus(scaled, weights[f"{name}_bias"])
    return scaled.astype(x.dtype)


def example_lengths(rows: Rows) -> Int[Array, "b s"]:
    """Of every token, how long its example is, as far as these rows show it."""

    def row(segments: Array, positions: Array) -> Array:
        longest = jax.ops.segment_max(positions, segments, num_segments=segments.shape[0] + 1)
        return longest[segments] + 1

    return jax.vmap(row)(rows.segments, rows.positions)


def _at(tree: Tree, path: str) -> Tree:
    for part in path.split("/"):
        tree = tree[part]
    return tree


def _attend(
    config: Decoder, layer: Layer, w: Tree, x: Array, turns: Turns | None, rows: Rows, seen: Cached | None, rules: Rules
) -> tuple[Array, tuple[Array, Array]]:
    q = constrain(plus(einsum("bsd,dnh->bsnh", x, w["q"]), w["q_bias"]), "b s n h", rules)
    k = constrain(plus(einsum("bsd,dkh->bskh", x, w["k"]), w["k_bias"]), "b s k h", rules)
    v = constrain(plus(einsum("bsd,dkh->bskh", x, w["v"]), w["v_bias"]), "b s k h", rules)
    if config.qk_norm:
        q, k = norm(config, q, w, "q_norm"), norm(config, k, w, "k_norm")
    if turns is not None:
        q, k = rotate(q, turns), rotate(k, turns)
    k, v = _prefixed(k, w["prefix_k"], rows), _prefixed(v, w["prefix_v"], rows)
    q, k, v = checkpoint_name(q, "qkv"), checkpoint_name(k, "qkv"), checkpoint_name(v, "qkv")
    scale = 1 / math.sqrt(config.head_size) if config.attn_scale is None else config.attn_scale
    if seen is None:
        y = attention(q, k, v, rows, window=layer.window, scale=scale, cap=config.attn_cap)
    else:
        y = decode_attention(q, k, v, seen, window=layer.window, scale=scale, cap=config.attn_cap)
    return plus(einsum("bsnh,nhd->bsd", y, w["o"]), w["o_bias"]), (k, v)


def _prefixed(kv: Float[Array, "b s k h"], prefix: Any, rows: Rows) -> Float[Array, "b s k h"]:
    """Keys or values with the prefix's rows in the places that are reserved for them. They are not turned."""
    if prefix is None or rows.virtual is None:
        return kv
    here = tied((rows.virtual > 0)[..., None, None], kv)
    return jnp.where(here, take(prefix, jnp.maximum(rows.virtual - 1, 0), kv.dtype), kv)


def _mlp(config: Decoder, act: Callable[[Array], Array], w: Tree, x: Array, rules: Rules) -> Array:
    up = checkpoint_name(plus(einsum("bsd,df->bsf", x, w["up"]), w["up_bias"]), "gate_up")
    if config.gated:
        gate = checkpoint_name(plus(einsum("bsd,df->bsf", x, w["gate"]), w["gate_bias"]), "gate_up")
        y = act(gate) * up
    else:
        y = act(up)
    return plus(einsum("bsf,fd->bsd", constrain(y, "b s f", rules), w["down"]), w["down_bias"])
