# SPDX-License-Identifier: Apache-2.0
"""The model that a run starts from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

import jaxpost
from jaxpost import params, quant, shard
from jaxpost.arrays import Tree
from jaxpost.data import tokenizers
from jaxpost.data.sources.stored import note
from jaxpost.data.tokenizers import Chat, Tokenizer, check_vocabulary
from jaxpost.faults import Fault
from jaxpost.interop import hf, hub
from jaxpost.interop.config_json import DTYPES
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.recipes.drawn import drawn

BUILT_IN = {"nano": Path(jaxpost.__file__).parent / "data" / "nano" / "base"}
"""Models that ship with the package."""


Quant = Literal["none", "int8", "int4", "nf4", "fp8"]
Ends = Literal["none", "int8"]
FORMATS: Mapping[str, quant.Format] = {
    "int8": quant.Int8(),
    "int4": quant.Int4(),
    "nf4": quant.Nf4(),
    "fp8": quant.Fp8(),
}
SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""What types are called elsewhere."""


@dataclass(frozen=True)
class Pretrained:
    """A directory in Hugging Face's layout (config.json, safetensors, a tokenizer), here or at a URL (`gs://...`,
    `s3://...`); `org/name` (or `org/name@revision`) of the Hugging Face hub; or `nano`, which ships with jaxpost.
    `dtype` is that of the weights in memory and of the computation; empty keeps what the config.json says. `quant`
    stores the blocks' weights in fewer bits, `ends` embedding and head: the base is frozen, so a delta over it trains
    all the same. `chat` says what is to be otherwise than its chat template says. `adapter` is a directory that PEFT or
    AdapterHub wrote, or that of a run of the same base: the model is then the base under that adapter, which stays as
    it is. So preferences are learned from where instruction tuning ended, and that is what is referred to."""

    path: str = "nano"
    dtype: str = ""
    quant: Quant = "none"
    ends: Ends = "none"
    chat: Chat = Chat()
    adapter: str = ""


@dataclass(frozen=True)
class Fresh:
    """A model with random weights, drawn from the seed: to train from nothing, or to measure speed. `quant` and `ends`
    are as for `Pretrained`."""

    model: Decoder
    tokenizer: str
    seed: int = 0
    quant: Quant = "none"
    ends: Ends = "none"
    chat: Chat = Chat()


Model = Pretrained | Fresh


def directory(model: Pretrained, weights: bool = True) -> Path:
    """Where the model lies on this host, fetched if need be: all of it, or all but its weights."""
    return BUILT_IN[model.path] if model.path in BUILT_IN else hub.directory(model.path, weights)


def dtype_named(name: str, where: str) -> str:
    """The name in full of a type that models are computed in; empty stays so. Raises `Fault` for any other."""
    name = SHORT.get(name, name)
    if name and name not in DTYPES:
        raise Fault(f"{where} is {name!r}; models are loaded and saved as one of {', '.join(DTYPES)}")
    return name


def _dtype(model: Model) -> str:
    if isinstance(model, Fresh):
        return dtype_named(model.model.dtype, "model.model.dtype")
    return dtype_named(model.dtype, "model.dtype")


def tokenizer_of(model: Model) -> Tokenizer:
    _dtype(model)  # what cannot be loaded is not looked at either
    path = model.tokenizer if isinstance(model, Fresh) else directory(model, weights=False)
    return tokenizers.load(path, model.chat)


def config_of(model: Model) -> Decoder:
    """Sizes and choices, without reading weights."""
    dtype = _dtype(model)
    config = model.model if isinstance(model, Fresh) else hf.read_config(directory(model, weights=False))
    return replace(config, dtype=dtype) if dtype else config


@dataclass(frozen=True)
class Loaded:
    """The model in memory: its config, its tokenizer, its weights laid out on the mesh, and the specs of those. The
    weights that an `adapter` edits are bound to its edits, whatever they are stored as: folded into 16 bits or fewer, a
    small change would be lost in rounding."""

    config: Decoder
    tokenizer: Tokenizer
    weights: Tree
    specs: Tree
    adapter: Mapping[str, Any] = field(default_factory=dict)


def plain(model: Model, mesh: Mesh) -> Loaded:
    """The model without what its `adapter` says: `trained.load` knows that. Reads (or draws) the weights onto the
    mesh, and tells who watches (`sources.stored.watched`) how far it is.

    Raises `Fault` for a directory that cannot be read, and for a tokenizer that knows more tokens than the model
    embeds."""
    config, tokenizer = config_of(model), tokenizer_of(model)
    check_vocabulary(tokenizer, config.vocab)
    format, ends = FORMATS.get(model.quant), FORMATS.get(model.ends)
    if isinstance(model, Fresh):
        specs = params.filled(decoder.specs(config))
        stored = quant.quantise_specs(specs, format) if format else specs
        stored = quant.quantise_specs(stored, ends, quant.ENDS) if ends else stored
        return Loaded(config, tokenizer, drawn(specs, stored, mesh, jax.random.key(model.seed)), stored)
    lay, report = partial(shard.shardings, mesh=mesh), partial(note, f"reading {model.path}")
    _, weights, stored = hf.stored(directory(model), config.dtype, lay, format, report, ends)
    return Loaded(config, tokenizer, weights, stored)
