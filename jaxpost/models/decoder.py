# SPDX-License-Identifier: Apache-2.0
"""One decoder for every decoder-only family: pre-norm blocks of grouped-query attention and a gated MLP.

Letters of axes: b batch, s sequence, l layers, d width, n query heads, k key/value heads, h head size, f feed-forward
width, v vocabulary. `embed`, `trunk` and `head` are apart, so that what stands between them (soft prompts, noise, a
value head) is composition.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpost import trees
from jaxpost.arrays import Array, Float, Int, Tree
from jaxpost.delta import constrain_weights, dense, einsum, formed, take
from jaxpost.kernels.attention import Cached, Rows, attention
from jaxpost.models.remat import Remat, rematerialised
from jaxpost.models.rope import Rope, rotate
from jaxpost.params import ParamSpec, constant, normal
from jaxpost.shard import RULES, Rules, constrain


@dataclass(frozen=True)
class Decoder:
    """Sizes and choices of a decoder; everything else follows from them. Static: it may be a jit argument.

    `biases` names the weights that have one (`("q", "k", "v")` in Qwen 2); the others' bias slots are empty until an
    edit fills them. `dtype` is the type of the weights and of the computation; softmax, norms and losses are in
    float32 whatever it is.
    """

    vocab: int
    d: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    rope: Rope = Rope()
    norm_eps: float = 1e-5
    tied: bool = False
    biases: tuple[str, ...] = ()
    max_length: int = 8192
    dtype: str = "float32"


def specs(config: Decoder) -> dict[str, Any]:
    """One spec per parameter. Layers are stacked on a leading axis; biases are slots that an edit may fill."""
    dtype = jnp.dtype(config.dtype)
    c = config
    size = {"v": c.vocab, "d": c.d, "l": c.layers, "n": c.heads, "k": c.kv_heads, "h": c.head_size, "f": c.ffn}
    depth_scaled = 0.02 / (2 * c.layers) ** 0.5

    def spec(dims: str, init: Any = None, optional: bool = False) -> ParamSpec:
        shape = tuple(size[letter] for letter in dims.replace(":", " ").split())
        return ParamSpec(shape, dims, init or normal(0.02), dtype, optional)

    def bias(name: str, dims: str) -> ParamSpec:
        return spec(dims, constant(0.0), optional=name not in c.biases)

    ones = constant(1.0)
    return {
        "embed": spec(": v : d"),
        "layers": {
            "attn_norm": spec("l : : d", ones),
            "attn": {
                "q": spec("l : d : n h"),
                "k": spec("l : d : k h"),
                "v": spec("l : d : k h"),
                "o": spec("l : n h : d", normal(depth_scaled)),
                "q_bias": bias("q", "l : : n h"),
                "k_bias": bias("k", "l : : k h"),
                "v_bias": bias("v", "l : : k h"),
                "o_bias": bias("o", "l : : d"),
            },
            "mlp_norm": spec("l : : d", ones),
            "mlp": {
                "gate": spec("l : d : f"),
                "up": spec("l : d : f"),
                "down": spec("l : f : d", normal(depth_scaled)),
                "gate_bias": bias("gate", "l : : f"),
                "up_bias": bias("up", "l : : f"),
                "down_bias": bias("down", "l : : d"),
            },
        },
        "norm": spec(": : d", ones),
        "head": spec(": d : v", optional=c.tied),
    }


def embed(config: Decoder, weights: Tree, tokens: Int[Array, "b s"], rules: Rules = RULES) -> Array:
    """Token embeddings `[b, s, d]` in the config's type, which is the one that the trunk then computes in."""
    x = take(weights["embed"], tokens, jnp.dtype(config.dtype))
    return constrain(x, "b s d", rules)


def trunk(
    config: Decoder,
    weights: Tree,
    x: Float[Array, "b s d"],
    rows: Rows,
    cached: Cached | None = None,
    keep: bool = False,
    remat: Remat = "none",
    rules: Rules = RULES,
) -> tuple[Float[Array, "b s d"], tuple[Array, Array] | None]:
    """All blocks and the last norm: hidden states `[b, s, d]`, and the tokens' own keys and values `[l, b, s, k, h]`
    if asked to `keep` them.

    `cached` holds earlier keys and values stacked over layers. It is read, never written: whoever owns the cache
    writes all layers' new entries at once afterwards.
    """
    layer_specs = trees.flatten(specs(config)["layers"])

    def block(x: Array, layer: tuple[Tree, Any]) -> tuple[Array, Any]:
        w, past = layer
        w = constrain_weights(w, layer_specs, rules)
        seen = None if cached is None else Cached(past[0], past[1], cached.segments, cached.positions)
        attended, kv = _attend(config, w["attn"], norm(x, w["attn_norm"], config.norm_eps), rows, seen, rules)
        x = checkpoint_name(constrain(x + attended, "b s d", rules), "mid")
        x = constrain(x + _mlp(w["mlp"], norm(x, w["mlp_norm"], config.norm_eps), rules), "b s d", rules)
        return x, kv if keep else None

    past = None if cached is None else (cached.k, cached.v)
    x, kept = jax.lax.scan(rematerialised(block, remat), x, (weights["layers"], past))
    return norm(x, weights["norm"], config.norm_eps), kept


def head(config: Decoder, weights: Tree, hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
    """Logits. Apply `head_weights` first where only the head's part of the tree may travel."""
    return contract_head(hidden, head_weights(config, weights))


def head_weights(config: Decoder, weights: Tree) -> dict[str, Any]:
    """The head's own part of the tree: the tied embedding, or the separate matrix. Logits are made chunk by chunk, so
    dense edits are added up here, once."""
    name = "embed" if config.tied else "head"
    return {name: formed(weights[name], jnp.dtype(config.dtype))}


def contract_head(hidden: Float[Array, "b s d"], part: Mapping[str, Any]) -> Float[Array, "b s v"]:
    """Logits from the head's own part of the tree."""
    if "embed" in part:
        return einsum("bsd,vd->bsv", hidden, part["embed"])
    return einsum("bsd,dv->bsv", hidden, part["head"])


def logits(config: Decoder, weights: Tree, tokens: Int[Array, "b s"], rows: Rows) -> Float[Array, "b s v"]:
    """The whole model, for callers that want all logits at once."""
    hidden, _ = trunk(config, weights, embed(config, weights, tokens), rows)
    return head(config, weights, hidden)


def norm(x: Float[Array, "b s d"], scale: Any, eps: float) -> Float[Array, "b s d"]:
    """Root-mean-square norm (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467), in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return einsum("bsd,d->bsd", wide, scale).astype(x.dtype)


def _biased(y: Array, bias: Any) -> Array:
    return y if bias is None else y + dense(bias, y.dtype)[None, None]


def _attend(
    config: Decoder, w: Tree, x: Array, rows: Rows, seen: Cached | None, rules: Rules
) -> tuple[Array, tuple[Array, Array]]:
    q = constrain(_biased(einsum("bsd,dnh->bsnh", x, w["q"]), w["q_bias"]), "b s n h", rules)
    k = constrain(_biased(einsum("bsd,dkh->bskh", x, w["k"]), w["k_bias"]), "b s k h", rules)
    v = constrain(_biased(einsum("bsd,dkh->bskh", x, w["v"]), w["v_bias"]), "b s k h", rules)
    q, k = rotate(q, rows.positions, config.rope), rotate(k, rows.positions, config.rope)
    q, k, v = checkpoint_name(q, "qkv"), checkpoint_name(k, "qkv"), checkpoint_name(v, "qkv")
    y = checkpoint_name(attention(q, k, v, rows, seen), "attn")
    return _biased(einsum("bsnh,nhd->bsd", y, w["o"]), w["o_bias"]), (k, v)


def _mlp(w: Tree, x: Array, rules: Rules) -> Array:
    gate = checkpoint_name(_biased(einsum("bsd,df->bsf", x, w["gate"]), w["gate_bias"]), "gate_up")
    up = checkpoint_name(_biased(einsum("bsd,df->bsf", x, w["up"]), w["up_bias"]), "gate_up")
    y = constrain(jax.nn.silu(gate) * up, "b s f", rules)
    return _biased(einsum("bsf,fd->bsd", y, w["down"]), w["down_bias"])
