# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model directories in and out: `config.json` and safetensors, whole or in shards.

A directory that `save` wrote loads in transformers 4 and 5 and gives the same logits there.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.data.tokenizers.directory import KEPT
from jaxpost.faults import Fault
from jaxpost.interop import bitsandbytes, config_json, families, hub, names, saving, weights
from jaxpost.interop.families import Family
from jaxpost.interop.listing import faults_in_words, listed
from jaxpost.interop.loading import STRIP, Report, placed
from jaxpost.interop.weights import Tensor
from jaxpost.models.architecture import Decoder, specs
from jaxpost.params import ParamSpec
from jaxpost.quant import ENDS, Format, Nf4, QArray, quantise_specs

SHARD_BYTES = 5 * 10**9


def read_config(directory: str | Path) -> Decoder:
    """The decoder that a directory's config.json describes. A field that the decoder cannot honour is a `Fault`."""
    return families.read(_here(directory, weights=False))[1]


def load(
    directory: str | Path, dtype: Any = None, shardings: Tree | None = None, report: Report | None = None
) -> tuple[Decoder, dict[str, Any]]:
    """A model as a decoder and its parameters, in `dtype` or else in the type that config.json names. A string may also
    name a model elsewhere (`hub.directory`). Matrices that bitsandbytes stored in four bits stay in them.

    Each parameter goes to where `shardings` says (a tree like the model's specs), or else to the default device. The
    host holds no more than one tensor for each of a few readers above what stays there. `report(done, total)` is
    called after every tensor with bytes.
    """
    return stored(directory, dtype, None if shardings is None else lambda specs: shardings, None, report)[:2]


def stored(
    directory: str | Path,
    dtype: Any = None,
    lay: Callable[[Tree], Tree] | None = None,
    format: Format | None = None,
    report: Report | None = None,
    ends: Format | None = None,
) -> tuple[Decoder, dict[str, Any], dict[str, Any]]:
    """As `load`, with the blocks' weights in `format` and embedding and head in `ends`, if there are such, and with the
    specs of what is loaded, from which `lay` makes the shardings. Weights are quantised matrix by matrix as they are
    read: in full precision there is never more than one for each of a few readers."""
    directory = _here(directory)
    family, config = families.read(directory)
    config = config if dtype is None else _typed(config, dtype)
    whole = specs(config)
    wanted = {path: spec for path, spec in trees.flatten(whole).items() if not spec.optional}
    with weights.Checkpoint(directory) as checkpoint:
        tensors = dict(checkpoint.tensors)
        in_four = bitsandbytes.found(directory, tensors)
        packed = {known: t for name, t in in_four.items() if (known := family.canonical(name)) is not None}
        there = {known: t for name, t in tensors.items() if (known := family.canonical(name)) is not None}
        slots = names.parts(family, config, there)
        _check(directory, there, names.shapes(slots), family if config.tied else None)
        forms = _forms(directory, wanted, bitsandbytes.formats(directory, packed, slots, wanted), format)
        if ends is not None:
            forms |= {
                path: quantise_specs({path: wanted[path]}, ends, (path,))[path] for path in ENDS if path in wanted
            }
        made = wanted | forms
        laid = trees.flatten(lay(trees.unflatten(made))) if lay else dict.fromkeys(wanted)
        if lay and (lost := [p for p in wanted if laid.get(p) is None or isinstance(laid[p], QArray) != (p in forms)]):
            raise ValueError(f"shardings say nothing about {listed(lost)}; make them from all of the model's specs")
        arrays = placed(there, slots, wanted, laid, report, forms=forms, packed=packed)
    empty = dict.fromkeys(trees.flatten(whole))
    return config, trees.unflatten(empty | arrays), trees.unflatten(empty | made)


def _forms(
    directory: Path, wanted: Mapping[str, ParamSpec], stored: Mapping[str, Nf4], format: Format | None
) -> dict[str, QArray]:
    """The specs of what is quantised, either there or on the way."""
    if not stored:
        flat = {} if format is None else trees.flatten(quantise_specs(trees.unflatten(wanted), format))
        return {path: leaf for path, leaf in flat.items() if isinstance(leaf, QArray)}
    if format is not None and not isinstance(format, Nf4):
        raise Fault(
            f"{directory}: the weights are in NF4 already and cannot become {type(format).__name__}; leave out quant, "
            "or take the model that they were made from"
        )
    each = {path: quantise_specs({path: wanted[path]}, own, (path,)) for path, own in stored.items()}
    return {path: trees.flatten(tree)[path] for path, tree in each.items()}


def save(
    directory: str | Path,
    config: Decoder,
    params: Tree,
    dtype: Any = None,
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Report | None = None,
) -> None:
    """Writes a model directory, in `dtype` or else in the config's; a tied model has no head there, as is usual.

    It is one of the family that the model came from, or of the first that can hold it. Leaves of other types are
    rounded once, here: folded weights arrive in float32, quantised ones are decoded. A checkpoint has all biases of a
    kind or none, so where some slots are filled the others are written as zeros.

    All of it is written beside the directory first and put in its place at the end: whatever fails before leaves what
    stood there as it was. Other files of a model directory that is replaced stay, those of its tokenizer (the chat
    template is one) only if no `tokenizer` is given. In a run of several processes all call this, the first writes,
    and all raise if it cannot. `report(done, total)` is called after every tensor with bytes.
    """
    directory = Path(directory).resolve()
    family, config, leaves = _prepared(config, params, dtype)
    shapes = names.shapes(names.parts(family, config))
    fetched = saving.tensors(family, config, leaves)
    stored = _reported(fetched, shapes, config, report)

    def write(to: Path) -> None:
        # Said even where there is none: transformers' own defaults may lie outside of the vocabulary.
        special = {f"{name}_token_id": getattr(tokenizer, name, None) for name in ("bos", "eos", "pad")}
        if tokenizer is not None:
            tokenizer.save(to)
        families.write(to, config, special)
        weights.write(to, shapes, np.dtype(config.dtype), stored, shard_bytes)

    # First of all: where it cannot be saved, gathering the parameters is for nothing.
    saving.by_the_first_process(directory, lambda: saving.check_target(directory))
    without = () if tokenizer is None else KEPT
    saving.by_the_first_process(directory, lambda: saving.written_beside(directory, write, without), fetched)


def tensors(config: Decoder, params: Tree, dtype: Any = None) -> Iterator[tuple[str, np.ndarray]]:
    """What `save` would write, tensor by tensor: names and values of a checkpoint of the model's family. Gradients,
    which are trees like their parameters, get their names there too."""
    yield from saving.tensors(*_prepared(config, params, dtype))


def _here(directory: str | Path, weights: bool = True) -> Path:
    return hub.directory(directory, weights) if isinstance(directory, str) else directory


def _prepared(config: Decoder, params: Tree, dtype: Any) -> tuple[Family, Decoder, dict[str, Any]]:
    config = _typed(config, config.dtype if dtype is None else dtype)
    family, config = families.of(dataclasses.replace(config, biases=saving.filled(params)))
    return family, config, saving.checked(family, config, params)


def _typed(config: Decoder, dtype: Any) -> Decoder:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in config_json.DTYPES:
        raise Fault(f"dtype {name}: models are loaded and saved as one of {', '.join(config_json.DTYPES)}")
    return dataclasses.replace(config, dtype=name)


def _check(
    directory: Path, there: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], tied: Family | None
) -> None:
    """Every tensor that a decoder needs is there in its shape, and nothing else is. A tied matrix that is stored twice
    is taken once."""
    if tied and tied.tensors["head"] in there and tied.tensors["embed"] in there:
        head, table = there.pop(tied.tensors["head"]), there[tied.tensors["embed"]]
        if not _equal(head, table):
            raise Fault(
                f"{directory}: config.json says tie_word_embeddings, but {head.name} and {table.name} differ; "
                "set it to false there if the model has a head of its own"
            )
    if packed := next((name for name in there if name.endswith((".qweight", ".qzeros"))), None):
        raise Fault(
            f"{directory}: tensor {packed} is of quantised weights (GPTQ, AWQ); take the model they were made from"
        )
    faults = {
        "missing": [name for name in shapes if name not in there],
        "not known here": [tensor.name for name, tensor in there.items() if name not in shapes],
        "of another shape than config.json says": [
            f"{there[name].name} {list(there[name].shape)} instead of {list(expected)}"
            for name, expected in shapes.items()
            if name in there and there[name].shape != expected
        ],
    }
    if wrong := faults_in_words(faults):
        raise Fault(f"{directory}: the tensors do not fit config.json: {wrong}")


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    step = max(1, STRIP // max(1, one.columns * one.dtype.itemsize))
    cuts = [(begin, min(begin + step, one.shape[0])) for begin in range(0, one.shape[0], step)]
    return all(np.array_equal(one.rows(*cut), other.rows(*cut)) for cut in cuts)


def _reported(
    stored: Iterator[tuple[str, np.ndarray]],
    shapes: Mapping[str, tuple[int, ...]],
    config: Decoder,
    report: Report | None,
) -> Iterator[np.ndarray]:
    """The tensors alone, each reported when the next is asked for: then it is written."""
    done, total = 0, sum(map(math.prod, shapes.values())) * np.dtype(config.dtype).itemsize
    for _, array in stored:
        yield array
        done += array.nbytes
        if report:
            report(done, total)
