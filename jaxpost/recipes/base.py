# SPDX-License-Identifier: Apache-2.0
"""The model that a run starts from."""

from dataclasses import dataclass, replace
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

BUILT_IN = {"nano": Path(jaxpost.__file__).parent / "data" / "nano" / "base"}
"""Models that ship with the package."""


FORMATS = {"int8": quant.Int8()}
SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""What types are called elsewhere."""


@dataclass(frozen=True)
class Pretrained:
    """A directory in Hugging Face's layout (config.json, safetensors, a tokenizer), here or at a URL (`gs://...`,
    `s3://...`); `org/name` (or `org/name@revision`) of the Hugging Face hub; or `nano`, which ships with jaxpost.
    `dtype` is that of the weights in memory and of the computation; empty keeps what the config.json says. `quant`
    stores the blocks' weights in fewer bits: the base is frozen, so a delta over it trains all the same. `chat` says
    what is to be otherwise than its chat template says."""

    path: str = "nano"
    dtype: str = ""
    quant: Literal["none", "int8"] = "none"
    chat: Chat = Chat()


@dataclass(frozen=True)
class Fresh:
    """A model with random weights, drawn from the seed: to train from nothing, or to measure speed."""

    model: Decoder
    tokenizer: str
    seed: int = 0
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
    """The model in memory: its config, its tokenizer, its weights laid out on the mesh, and the specs of those."""

    config: Decoder
    tokenizer: Tokenizer
    weights: Tree
    specs: Tree


def load(model: Model, mesh: Mesh) -> Loaded:
    """Reads (or draws) the weights onto the mesh, and tells who watches (`sources.stored.watched`) how far it is.
    Raises `Fault` for a directory that cannot be read, and for a tokenizer that knows more tokens than the model
    embeds."""
    config, tokenizer = config_of(model), tokenizer_of(model)
    check_vocabulary(tokenizer, config.vocab)
    specs = params.filled(decoder.specs(config))
    places = shard.shardings(specs, mesh)
    if isinstance(model, Fresh):
        draw: Any = jax.jit(lambda key: params.init(specs, key), out_shardings=places)
        return Loaded(config, tokenizer, draw(jax.random.key(model.seed)), specs)
    weights = hf.load(directory(model), config.dtype, places, partial(note, f"reading {model.path}"))[1]
    if model.quant == "none":
        return Loaded(config, tokenizer, weights, specs)
    format = FORMATS[model.quant]
    stored = quant.quantise_specs(specs, format)
    pack: Any = jax.jit(lambda w: quant.quantise_tree(w, specs, format), out_shardings=shard.shardings(stored, mesh))
    return Loaded(config, tokenizer, pack(weights), stored)
