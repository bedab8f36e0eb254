# SPDX-License-Identifier: Apache-2.0
"""A directory that PEFT wrote, as a delta."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxpost.arrays import Tree
from jaxpost.delta import Stack
from jaxpost.interop import adapter_files, families
from jaxpost.interop.adapter_files import Tensors
from jaxpost.interop.config_json import ConfigFields
from jaxpost.interop.peft import copies, factored, modules, prompts, scales
from jaxpost.interop.peft.modules import PREFIX, Layout
from jaxpost.models.architecture import Decoder

_OF_ALL = (
    "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode",
)  # fmt: skip
_TARGETS = ("target_modules", "exclude_modules", "modules_to_save", "fan_in_fan_out")
_LORA = (
    *_TARGETS, "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "init_lora_weights", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config", "megatron_core", "trainable_token_indices",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "use_dora", "velora_config",
    "alora_invocation_tokens", "use_qalora", "qalora_group_size", "monteclora_config", "layer_replication",
    "runtime_config", "lora_bias", "target_parameters", "use_bdlora", "arrow_config", "kasa_config",
    "ensure_weight_tying", "target_modules_to_tie", "modules_to_tie",
)  # fmt: skip
_PROMPT = (
    "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
    "modules_to_save",
)  # fmt: skip
_ENCODER = ("encoder_hidden_size",)
KNOWN: Mapping[str, tuple[str, ...]] = {
    "LORA": _LORA,
    "ADALORA": (
        *_LORA, "target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
    ),
    "IA3": (*_TARGETS, "feedforward_modules", "init_ia3_weights"),
    "PROMPT_TUNING": (
        *_PROMPT, "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    ),
    "P_TUNING": (
        *_PROMPT, *_ENCODER, "encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout",
    ),
    "PREFIX_TUNING": (*_PROMPT, *_ENCODER, "prefix_projection", "init_weights"),
}  # fmt: skip
"""The fields of each kind; those that only training there uses are ignored."""


def load(directory: str | Path, config: Decoder, base: Tree | None = None) -> dict[str, Any]:
    """The delta over the model that an adapter directory holds, in float32.

    `base` are the model's weights: what an adapter holds whole becomes a difference from them. Raises `Fault` for an
    adapter of another base, one of a kind that is not known, and one that says what no delta here can.
    """
    directory = Path(directory)
    said = adapter_files.said(directory)
    kind = said.values.get("peft_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        raise said.fault("peft_type", f"known: {', '.join(KNOWN)}")
    adapter_files.warn_of_unknown(said, {*_OF_ALL, *KNOWN[kind]})
    _check(said, bool if kind == "ADALORA" else int)
    layout = modules.layout(config)
    found = adapter_files.tensors(directory, "adapter_model.safetensors", "adapter_model.bin")
    found.there = {_canonical(config, name): tensor for name, tensor in found.there.items()}
    edits: dict[str, list[Any]] = defaultdict(list)
    if kind in ("LORA", "ADALORA", "IA3"):
        for path, made in copies.copies(said, found, layout, base).items():
            edits[path] += made
    for path, made in _of_kind(kind, said, found, layout, base).items():
        edits[path] += made
    found.done()
    return {path: made[0] if len(made) == 1 else Stack(tuple(made)) for path, made in edits.items()}


def _check(said: ConfigFields, ranks: type) -> None:
    """That fields which several kinds read are of their types; `rank_pattern` holds ranks, or (AdaLoRA) which are
    left."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def of(value: Any, kind: Callable[[Any], bool]) -> bool:
        return isinstance(value, dict) and all(map(kind, value.values()))

    def names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    def left(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(x, bool) for x in value)

    needed: dict[str, tuple[Callable[[Any], bool], str]] = {
        "lora_alpha": (number, "it must be a number"),
        "lora_dropout": (number, "it must be a number"),
        "alpha_pattern": (lambda v: of(v, number), "it must map patterns to numbers"),
        "rank_pattern": (
            lambda v: of(v, left if ranks is bool else lambda x: type(x) is int and x > 0),
            "it must map names to lists of true and false" if ranks is bool else "it must map patterns to ranks",
        ),
        "modules_to_save": (names, "it must be a list of names"),
    }
    for name, (fits, wanted) in needed.items():
        if (value := said.values.get(name)) is not None and not fits(value):
            raise said.fault(name, wanted)


def _of_kind(
    kind: str, said: ConfigFields, found: Tensors, layout: Layout, base: Tree | None
) -> Mapping[str, list[Any]]:
    match kind:
        case "LORA":
            return factored.lora(said, found, layout, base)
        case "ADALORA":
            return factored.adalora(said, found, layout)
        case "IA3":
            return scales.ia3(said, found, layout)
        case "PREFIX_TUNING":
            return prompts.prefix(said, found, layout.config)
        case _:
            return prompts.prompt(said, found, layout.config)


def _canonical(config: Decoder, name: str) -> str:
    """A key with the module's name as the family has it: models around the decoder, and the bare decoder without its
    head, have other names for it."""
    if not name.startswith(PREFIX):
        return name
    family = families.FAMILIES.get(config.family)
    known = family and family.canonical(name.removeprefix(PREFIX))
    return name if known is None else PREFIX + known
