# SPDX-License-Identifier: Apache-2.0
"""Adapters in the formats of other libraries, whichever a directory is in."""

from pathlib import Path
from typing import Any

from jaxpost.arrays import Tree
from jaxpost.interop import adapter_files, adapterhub, peft
from jaxpost.models.architecture import Decoder


def load(directory: str | Path, config: Decoder, base: Tree | None = None) -> dict[str, Any]:
    """The delta over the model that the directory holds: PEFT's have a `peft_type`, AdapterHub's have none. What an
    adapter holds whole becomes a difference from the `base`'s weights."""
    said = adapter_files.said(Path(directory))
    if "peft_type" in said.values or "architecture" not in said.values and "config" not in said.values:
        return peft.load(directory, config, base)
    return adapterhub.load(directory, config)
