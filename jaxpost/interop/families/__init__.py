# SPDX-License-Identifier: Apache-2.0
"""The families of models that are read and written, each a config and a table of names over the one decoder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpost.faults import Fault, nearest
from jaxpost.interop import config_json
from jaxpost.interop.config_json import ConfigFields
from jaxpost.interop.families.family import Family as Family
from jaxpost.interop.families.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_WITH_VISION
from jaxpost.interop.families.gpt2 import GPT2
from jaxpost.interop.families.llama import LLAMA_FAMILY, MISTRAL
from jaxpost.interop.families.mixtral import MIXTRAL
from jaxpost.interop.families.phi3 import PHI3
from jaxpost.interop.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from jaxpost.models.architecture import Decoder

WRITTEN = (LLAMA_FAMILY, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, GPT2, PHI3, MIXTRAL, QWEN3_MOE)
"""In the order in which they are tried for a decoder that does not say where it is from."""

FAMILIES: Mapping[str, Family] = {family.kind: family for family in (*WRITTEN, GEMMA3_WITH_VISION)}


def read(directory: Path) -> tuple[Family, Decoder]:
    """The family of a directory and the decoder that its config.json describes."""
    said = config_json.opened(directory)
    family = _named(said)
    return family, family.decoder(said)


def _named(said: ConfigFields) -> Family:
    kind = said.values.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    near = nearest(kind, FAMILIES) if isinstance(kind, str) else ""
    hint = f"; the nearest to it: {near.removeprefix('did you mean ')[:-1]}" if near.startswith("did") else ""
    raise said.fault("model_type", f"supported architectures: {', '.join(FAMILIES)}{hint}")


def of(config: Decoder) -> tuple[Family, Decoder]:
    """The family to write a decoder as: the one it was read from if that can hold it, or else the first that can; and
    the decoder with the biases that checkpoints of it have. One that no family can hold is a `Fault`."""
    order = sorted(WRITTEN, key=lambda family: family.kind != config.family)
    held = {family.kind: family.with_biases(config) for family in order}
    able = [family for family in order if not family.misses(held[family.kind])]
    exact = [f for f in able if f.kind == config.family or set(held[f.kind].biases) == set(config.biases)]
    for family in (*exact, *able):
        return family, held[family.kind]
    missed = {family.kind: family.misses(held[family.kind]) for family in order}
    # What a family could not even read back is no field: it counts as many.
    family = min(order, key=lambda f: sum(1 if hasattr(config, name) else 99 for name in missed[f.kind]))
    values = (f"{name}={getattr(config, name)!r}" if hasattr(config, name) else name for name in missed[family.kind])
    raise Fault(
        f"no known family of checkpoints can hold this decoder: {family.kind}, the nearest, has no place for "
        f"{', '.join(values)}"
    )


def write(directory: Path, config: Decoder, extra: Mapping[str, Any]) -> None:
    """A config.json that both versions of transformers read alike."""
    family, config = of(config)
    text = json.dumps({**family.fields(config), **extra}, indent=2)
    (directory / config_json.CONFIG).write_text(text + "\n", encoding="utf-8")
