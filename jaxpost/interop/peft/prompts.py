# SPDX-License-Identifier: Apache-2.0
"""Prompts and prefixes as PEFT writes them, one tensor `prompt_embeddings`, and as edits of their slots.

What wrote them (P-tuning's encoder, a prefix's projection) is not saved there. A prompt's rows are what the trunk is
given, behind the factor that Gemma's embeddings have (as from version 5 of transformers on).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpost.delta import Insert
from jaxpost.interop.adapter_files import Tensors
from jaxpost.interop.config_json import ConfigFields
from jaxpost.models.architecture import Decoder, blocks, is_stacked

KEY = "prompt_embeddings"


def prompt(said: ConfigFields, found: Tensors, config: Decoder) -> dict[str, list[Any]]:
    count = said.size("num_virtual_tokens")
    if said.size("num_transformer_submodules", 1) != 1:
        raise said.fault("num_transformer_submodules", "only prompts of decoders are read")
    rows = found.take(KEY, count, config.d)
    return {"prompt": [Insert(jnp.asarray(rows))]}


def written_prompt(value: Any, config: Decoder) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    rows = np.asarray(value, np.float32)
    said = {"num_virtual_tokens": len(rows), "token_dim": config.d, "num_attention_heads": config.heads}
    return {KEY: rows}, {**_said(config), **said, "peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}


def prefix(said: ConfigFields, found: Tensors, config: Decoder) -> dict[str, list[Any]]:
    """Keys and values of each layer in turn; keys are not rotated, there as here."""
    count, width = said.size("num_virtual_tokens"), config.kv_heads * config.head_size
    flat = found.take(KEY, count, 2 * config.layers * width)
    whole = flat.reshape(count, config.layers, 2, config.kv_heads, config.head_size)
    made: dict[str, list[Any]] = {}
    for block, numbers in blocks(config).items():
        own = np.moveaxis(whole[:, list(numbers)], 0, 2)  # l, 2, t, k, h
        own = own if is_stacked(block) else own[0][None]
        for which, name in enumerate(("prefix_k", "prefix_v")):
            value = own[:, which] if is_stacked(block) else own[0, which]
            made[f"{block}/attn/{name}"] = [Insert(jnp.asarray(value))]
    return made


def written_prefix(values: Mapping[str, Any], config: Decoder) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The inverse; the values are by path."""
    length = np.shape(next(iter(values.values())))[-3]
    whole = np.zeros((length, config.layers, 2, config.kv_heads, config.head_size), np.float32)
    for block, numbers in blocks(config).items():
        for which, name in enumerate(("prefix_k", "prefix_v")):
            value = np.asarray(values[f"{block}/attn/{name}"], np.float32)
            for at, number in enumerate(numbers):
                whole[:, number, which] = value[at] if is_stacked(block) else value
    said = {
        "num_virtual_tokens": length,
        "token_dim": config.kv_heads * config.head_size,
        "num_attention_heads": config.kv_heads,
    }
    more = {"peft_type": "PREFIX_TUNING", "prefix_projection": False, "encoder_hidden_size": None}
    return {KEY: whole.reshape(length, -1)}, {**_said(config), **said, **more}


def _said(config: Decoder) -> dict[str, Any]:
    return {"num_layers": config.layers, "num_transformer_submodules": 1, "modules_to_save": None}
