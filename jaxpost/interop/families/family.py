# SPDX-License-Identifier: Apache-2.0
"""What a family of models is: how its config.json and its tensors spell a decoder. No arithmetic of its own."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jaxpost.faults import Fault
from jaxpost.interop.config_json import ConfigFields
from jaxpost.models.architecture import Decoder, Layer

LAYER = "model.layers.{layer}."
ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")

LLAMA = {
    "embed": "model.embed_tokens.weight",
    "attn_norm": LAYER + "input_layernorm.weight",
    "attn/q": LAYER + "self_attn.q_proj.weight",
    "attn/k": LAYER + "self_attn.k_proj.weight",
    "attn/v": LAYER + "self_attn.v_proj.weight",
    "attn/o": LAYER + "self_attn.o_proj.weight",
    "attn/q_bias": LAYER + "self_attn.q_proj.bias",
    "attn/k_bias": LAYER + "self_attn.k_proj.bias",
    "attn/v_bias": LAYER + "self_attn.v_proj.bias",
    "attn/o_bias": LAYER + "self_attn.o_proj.bias",
    "mlp_norm": LAYER + "post_attention_layernorm.weight",
    "mlp/gate": LAYER + "mlp.gate_proj.weight",
    "mlp/up": LAYER + "mlp.up_proj.weight",
    "mlp/down": LAYER + "mlp.down_proj.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
"""The names that most families share."""

QK_NORMS = {"attn/q_norm": LAYER + "self_attn.q_norm.weight", "attn/k_norm": LAYER + "self_attn.k_norm.weight"}


@dataclass(frozen=True)
class Family:
    """One `model_type`. `read` and `write` are each other's inverse where the family can hold a decoder, and that it
    cannot shows in what `read` makes of what `write` wrote.

    `tensors` names the tensor of every parameter, with a hole for the layer (`{layer}`) and for the expert
    (`{expert}`); parameters inside blocks go by their path there, those of experts by `experts/...`. Parameters that
    share a tensor lie in it one behind the other along their out axis, in the table's order; a tensor without a hole
    for the expert holds all experts. Matrices are stored `[out, in]`, those named in `input_major` `[in, out]`. `fused`
    are other names, which are read where a checkpoint has them. `renamed` turns a checkpoint's names into the
    table's, `ignored` are buffers and other parts of larger models. A checkpoint has all or none of the biases of one
    of the `bias_groups`, and those `always_biased` at any rate. Where `heads_divide_width`, transformers refuses a
    model whose number of heads does not divide its width.
    """

    kind: str
    architecture: str
    read: Callable[[ConfigFields], Decoder]
    write: Callable[[Decoder], dict[str, Any]]
    tensors: Mapping[str, str] = field(default_factory=lambda: LLAMA)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    input_major: frozenset[str] = frozenset({"embed", "positions"})
    fused: Mapping[str, str] = field(default_factory=dict)
    renamed: Sequence[tuple[str, str]] = ((r"^(?!model\.|lm_head\.)", "model."),)
    ignored: str = r".*\.rotary_emb\.inv_freq"
    bias_groups: tuple[tuple[str, ...], ...] = ()
    always_biased: tuple[str, ...] = ()
    heads_divide_width: bool = False

    def decoder(self, said: ConfigFields) -> Decoder:
        """What a config.json says. `defaults` are what transformers takes where it says nothing; `required`
        are fields with one value that can be served."""
        said = said.with_defaults(self.defaults)
        for name, value in self.required.items():
            said.require(name, value)
        return replace(self.read(said), family=self.kind)

    def fields(self, config: Decoder) -> dict[str, Any]:
        """The inverse: a config.json that versions 4 and 5 read alike. What only training there would use is left to
        its defaults."""
        said = {"architectures": [self.architecture], "model_type": self.kind, **self.write(config)}
        return {**said, "dtype": config.dtype, "torch_dtype": config.dtype}

    def canonical(self, name: str) -> str | None:
        """A checkpoint's name for a tensor as the table has it; `None` for what is no part of the decoder."""
        for pattern, put in self.renamed:
            name = re.sub(pattern, put, name)
        return None if re.fullmatch(self.ignored, name) else name

    def with_biases(self, config: Decoder) -> Decoder:
        """The config with the biases that a checkpoint of it would have beside its own."""
        names = {*config.biases, *self.always_biased}
        for kind in self.bias_groups:
            names |= set(kind) if names & set(kind) else set()
        return replace(config, biases=_ordered(names))

    def misses(self, config: Decoder) -> tuple[str, ...]:
        """Which fields of a decoder the family cannot hold as they are."""
        wanted = normal(config)
        try:
            found = normal(self.decoder(ConfigFields(Path("config.json"), self.fields(wanted))))
        except Fault as fault:
            return (str(fault).split("; ")[0],)
        refused = ("d", "heads") if self.heads_divide_width and config.d % config.heads else ()
        names = (f.name for f in fields(wanted) if f.compare)
        return tuple(n for n in names if n in refused or getattr(found, n) != getattr(wanted, n))


def normal(config: Decoder) -> Decoder:
    """The one of all configs of a model that reading makes: the shortest pattern, biases in their order."""
    layers = [config.layer(number) for number in range(config.layers)]
    layers = [replace(layer, rope=None) if layer.rope == config.rope else layer for layer in layers]
    layers = [layer if config.experts else replace(layer, dense=False) for layer in layers]
    return replace(config, pattern=shortest(layers), biases=_ordered(config.biases))


def shortest(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The shortest pattern that, repeated and cut off, gives these layers."""
    period = next(p for p in range(1, len(layers) + 1) if all(a == b for a, b in zip(layers[p:], layers, strict=False)))
    return tuple(layers[:period])


def _ordered(biases: set[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in ATTENTION + MLP if name in biases)


def biases(said: ConfigFields, flags: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The biases that flags switch on, kind by kind."""
    return tuple(name for flag, names in flags.items() if said.flag(flag) for name in names)


def flagged(config: Decoder, flags: Mapping[str, tuple[str, ...]]) -> dict[str, bool]:
    """The inverse of `biases`."""
    return {flag: set(names) <= set(config.biases) for flag, names in flags.items()}


def window(said: ConfigFields) -> int | None:
    """The window of a model whose layers are alike."""
    return None if said.values.get("sliding_window") is None else said.size("sliding_window")


def one_window(config: Decoder) -> int | None:
    """The one window of all layers that have one."""
    return next((layer.window for layer in config.pattern if layer.window is not None), None)


def layer_types(config: Decoder) -> list[str]:
    layers = (config.layer(number) for number in range(config.layers))
    return ["sliding_attention" if layer.window or layer.rope else "full_attention" for layer in layers]
