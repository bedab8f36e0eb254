# SPDX-License-Identifier: Apache-2.0
"""What a decoder is: sizes and choices as one static record, and the specs of its parameters that follow from it.

Letters of axes: b batch, s sequence, l layers, d width, n query heads, k key/value heads, h head size, f feed-forward
width, e experts, p learned positions, t places of a prompt or prefix, c classes of a head, v vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp

from jaxpost.models.rope import Rope
from jaxpost.params import Init, ParamSpec, constant, normal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Experts:
    """A mixture of `count` MLPs of width `ffn`, of which a router chooses `active` for each token and weighs them by
    its softmax over all, made to sum to one over the chosen if `renormalised`."""

    count: int
    active: int
    ffn: int
    renormalised: bool = True


@dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer. `window` is how many tokens, itself included, a token sees (`None`: all
    before it); `rope` replaces the config's; `dense` gives a layer of a mixture-of-experts model one plain MLP."""

    window: int | None = None
    rope: Rope | None = None
    dense: bool = False


@dataclass(frozen=True)
class Decoder:
    """Sizes and choices of a decoder; everything else follows from them. Static: it may be a jit argument.

    `pattern` repeats over the layers. `rope` is `None` where positions are learned, a table of `max_length` rows.
    `norm` divides by the root mean square and multiplies by its weights (`rms`) or by one plus them (`offset`), or
    takes the mean off first and adds a bias (`layer`); `post_norms` puts another one behind attention and MLP;
    `qk_norm` one over each head's queries and keys. `gated` MLPs multiply by an activated gate, others activate what
    goes up. `biases` names the weights that have one (`("q", "k", "v")` in Qwen 2); the others' bias slots are empty
    until an edit fills them. Attention scores are multiplied by `attn_scale` (`None`: one over the root of the head
    size) and, like logits, squashed smoothly into a range of `cap` to either side where one is given. `dtype` is the
    type of the weights and of the computation; softmax, norms and losses are in float32 whatever it is. `family` is
    the layout of checkpoints that the model came in and leaves in where several could hold it; it is no part of what
    the model computes, nor of what makes two configs equal.
    """

    vocab: int
    d: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    rope: Rope | None = Rope()
    norm_eps: float = 1e-5
    tied: bool = False
    biases: tuple[str, ...] = ()
    max_length: int = 8192
    dtype: str = "float32"
    pattern: tuple[Layer, ...] = (Layer(),)
    norm: Literal["rms", "offset", "layer"] = "rms"
    post_norms: bool = False
    qk_norm: bool = False
    activation: Activation = "silu"
    gated: bool = True
    experts: Experts | None = None
    embed_scale: float = 1.0
    attn_scale: float | None = None
    attn_cap: float | None = None
    logit_cap: float | None = None
    family: str = field(default="", compare=False)

    def layer(self, number: int) -> Layer:
        return self.pattern[number % len(self.pattern)]


def blocks(config: Decoder) -> dict[str, tuple[int, ...]]:
    """Where the layers are: from a path in the tree to the numbers of the layers stacked there, in the order in which
    blocks first run. A pattern of one layer is one stack, `layers`; of more, one for each of its places, `layers/0`,
    `layers/1`, ...; layers behind the last whole period are not stacked (`layers/tail/0`, ...)."""
    period = len(config.pattern)
    whole = config.layers // period * period
    if period == 1:
        return {"layers": tuple(range(config.layers))}
    stacked = {f"layers/{i}": tuple(range(i, whole, period)) for i in range(period)} if whole else {}
    return stacked | {f"layers/tail/{i - whole}": (i,) for i in range(whole, config.layers)}


def is_stacked(path: str) -> bool:
    """Whether a block's parameters carry the layer axis."""
    return not path.startswith("layers/tail/")


def specs(config: Decoder) -> dict[str, Any]:
    """One spec per parameter. Layers are stacked on a leading axis.

    Slots that only edits fill: biases, where the family has none; a `prompt`, whose rows stand in the places that its
    tokens reserve, and each block's prefix, whose keys and values do (what fills them brings its own length); and in
    each block two places in the stream, `adapter`, which what leaves attention and MLP passes through; and `heads`
    beside the one that writes words.
    """
    spec = _Maker(config, ())
    tree: dict[str, Any] = {"embed": spec(": v : d"), "prompt": spec(": t : d", optional=True), "layers": {}}
    if config.rope is None:
        tree["positions"] = spec(": p : d")
    for path, numbers in blocks(config).items():
        made = _block(config, config.layer(numbers[0]), _Maker(config, numbers, is_stacked(path)))
        node, *parts = tree, *path.split("/")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = made
    heads = {"classes": spec(": d : c", optional=True), "classes_shift": spec(": : c", optional=True)}
    return tree | spec.norm("norm") | {"head": spec(": d : v", optional=config.tied), "heads": heads}


@dataclass(frozen=True)
class _Maker:
    """Specs of the block of these layers, or of what stands outside of all."""

    config: Decoder
    layers: tuple[int, ...]
    stacked: bool = False

    def __call__(self, dims: str, init: Init | None = None, optional: bool = False) -> ParamSpec:
        c = self.config
        size = {"v": c.vocab, "d": c.d, "n": c.heads, "k": c.kv_heads, "h": c.head_size, "f": c.ffn, "p": c.max_length}
        size |= {"t": 0, "c": 0}
        if c.experts and dims.startswith("e"):
            size |= {"e": c.experts.count, "f": c.experts.ffn}
        if c.experts and dims.endswith("e"):
            size |= {"e": c.experts.count}
        if self.stacked:
            dims, size["l"] = f"l {dims}", len(self.layers)
        shape = tuple(size[letter] for letter in dims.replace(":", " ").split())
        return ParamSpec(shape, dims, init or normal(0.02), jnp.dtype(c.dtype), optional, layers=self.layers)

    def bias(self, name: str, dims: str) -> dict[str, ParamSpec]:
        return {f"{name}_bias": self(dims, constant(0.0), optional=name not in self.config.biases)}

    def norm(self, name: str, letter: str = "d") -> dict[str, ParamSpec]:
        made = {name: self(f": : {letter}", constant(0.0 if self.config.norm == "offset" else 1.0))}
        if self.config.norm == "layer":
            made[f"{name}_bias"] = self(f": : {letter}", constant(0.0))
        return made


def _block(config: Decoder, layer: Layer, spec: _Maker) -> dict[str, Any]:
    back = normal(0.02 / (2 * config.layers) ** 0.5)  # of what is added to the stream, by depth
    attn = {"q": spec(": d : n h"), "k": spec(": d : k h"), "v": spec(": d : k h"), "o": spec(": n h : d", back)}
    attn |= spec.bias("q", ": : n h") | spec.bias("k", ": : k h") | spec.bias("v", ": : k h") | spec.bias("o", ": : d")
    attn |= {"prefix_k": spec(": t : k h", optional=True), "prefix_v": spec(": t : k h", optional=True)}
    if config.qk_norm:
        attn |= spec.norm("q_norm", "h") | spec.norm("k_norm", "h")
    if config.experts and not layer.dense:
        mlp = {"router": spec(": d : e"), "up": spec("e : d : f"), "down": spec("e : f : d", back)}
        if config.gated:
            mlp["gate"] = spec("e : d : f")
    else:
        mlp = {"up": spec(": d : f"), "down": spec(": f : d", back)}
        mlp |= spec.bias("up", ": : f") | spec.bias("down", ": : d")
        if config.gated:
            mlp |= {"gate": spec(": d : f")} | spec.bias("gate", ": : f")
    for sublayer in (attn, mlp):
        sublayer["adapter"] = spec(": : d", optional=True)
    block = {"attn": attn, "mlp": mlp} | spec.norm("attn_norm") | spec.norm("mlp_norm")
    return block | (spec.norm("attn_post_norm") | spec.norm("mlp_post_norm") if config.post_norms else {})
