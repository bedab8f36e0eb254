# SPDX-License-Identifier: Apache-2.0
"""Hugging Face Llama directories in and out: `config.json` and safetensors, whole or in shards.

A directory that `save` wrote loads in transformers 4 and 5 and gives the same logits there.
"""

import dataclasses
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.delta import dense
from jaxpost.faults import Fault
from jaxpost.interop import config_json, weights
from jaxpost.interop.names import BIASES, IGNORED, LLAMA, names, read_into, shape, stored
from jaxpost.models.decoder import Decoder, specs
from jaxpost.params import ParamSpec

SHARD_BYTES = 5 * 10**9


def read_config(directory: str | Path) -> Decoder:
    """The decoder that a directory's config.json describes. A field that the decoder cannot honour is a `Fault`."""
    return config_json.read(Path(directory))


def load(directory: str | Path, dtype: Any = None, shardings: Tree | None = None) -> tuple[Decoder, dict[str, Any]]:
    """A model as a decoder and its parameters, in `dtype` or else in the type that config.json names.

    Each parameter is assembled on the host from one stored tensor at a time and then placed: as `shardings` says (a
    tree like the model's specs), on the default device otherwise. So the host never holds more than one parameter and
    one tensor above what stays there.
    """
    directory = Path(directory)
    config = config_json.read(directory)
    config = config if dtype is None else _typed(config, dtype)
    flat_specs = trees.flatten(specs(config))
    wanted = {path: spec for path, spec in flat_specs.items() if not spec.optional}
    places = dict.fromkeys(wanted) if shardings is None else trees.flatten(shardings)
    if shardings is not None and (lost := [path for path in wanted if places.get(path) is None]):
        raise ValueError(f"shardings say nothing about {_listed(lost)}; make them from all of the model's specs")
    with weights.Checkpoint(directory) as checkpoint:
        _check(checkpoint, wanted, config.tied)
        params: dict[str, Any] = dict.fromkeys(flat_specs)
        for path, spec in wanted.items():
            params[path] = _place(_assemble(checkpoint, path, spec), places[path])
    return config, trees.unflatten(params)


def save(
    directory: str | Path,
    config: Decoder,
    params: Tree,
    dtype: Any = None,
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model directory, in `dtype` or else in the config's; a tied model has no head there, as is usual.

    Leaves of other types are rounded to it once, here: folded weights arrive in float32, quantised ones are decoded.
    A checkpoint has all biases of a kind or none, so where some slots are filled the others are written as zeros.

    All of it is written beside the directory first and put in its place at the end: whatever fails before leaves what
    stood there as it was. Other files of a model directory that is replaced (a tokenizer, a chat template) stay.
    """
    directory = Path(directory).resolve()
    config = _with_biases(_typed(config, config.dtype if dtype is None else dtype), params)
    leaves = _leaves(config, params)
    if directory.exists() and not ((directory / config_json.CONFIG).is_file() or _is_empty(directory)):
        raise Fault(f"{directory}: exists and holds no model; save into a new or empty directory, or over a model")
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left there by a save that was killed
        partial.mkdir(parents=True)
        try:
            _write(partial, config, leaves, tokenizer, shard_bytes)
            _replace(directory, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise Fault(f"{directory}: the model could not be saved ({reason}); what stood there is untouched") from error


def _typed(config: Decoder, dtype: Any) -> Decoder:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in config_json.DTYPES:
        raise Fault(f"dtype {name}: models are loaded and saved as one of {', '.join(config_json.DTYPES)}")
    return dataclasses.replace(config, dtype=name)


def _with_biases(config: Decoder, params: Tree) -> Decoder:
    """The config of the checkpoint: where one bias of a kind is filled, all of them are written."""
    filled = {path.split("/")[-1] for path, x in trees.flatten(params).items() if x is not None}
    kinds = [names for names in BIASES.values() if filled & {f"{name}_bias" for name in names}]
    return dataclasses.replace(config, biases=tuple(name for names in kinds for name in names))


def _check(checkpoint: weights.Checkpoint, wanted: Mapping[str, ParamSpec], tied: bool) -> None:
    """Every tensor that a decoder needs is there in its shape, and nothing else is."""
    shapes = {name: shape(path, spec) for path, spec in wanted.items() for name in names(path, spec)}
    head, table = LLAMA["head"], LLAMA["embed"]
    there = {name: found for name, found in checkpoint.shapes.items() if not IGNORED.fullmatch(name)}
    if tied and head in there and table in there:
        # Some checkpoints hold the tied matrix twice.
        if not np.array_equal(checkpoint.read(head), checkpoint.read(table)):
            raise Fault(
                f"{checkpoint.directory}: config.json says tie_word_embeddings, but {head} and {table} differ; "
                "set it to false there if the model has a head of its own"
            )
        del there[head]
    misshapen = [
        f"{name} {list(there[name])} instead of {list(expected)}"
        for name, expected in shapes.items()
        if name in there and there[name] != expected
    ]
    faults = {
        "missing": [name for name in shapes if name not in there],
        "not known here": [name for name in there if name not in shapes],
        "of another shape than config.json says": misshapen,
    }
    if said := _said(faults):
        raise Fault(f"{checkpoint.directory}: the tensors do not fit config.json: {said}")


def _said(faults: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{len(found)} {what}: {_listed(found)}" for what, found in faults.items() if found)


def _listed(items: list[str]) -> str:
    """All of them, those that differ in their layer's number only as one: `layers.{0-3,7}.up`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for item in items:
        before, number, after = (re.split(r"(?<=layers\.)(\d+)(?=\.)", item, maxsplit=1) + ["-1", ""])[:3]
        groups.setdefault((before, after), []).append(int(number))
    return ", ".join(before + _ranges(numbers) + after for (before, after), numbers in groups.items())


def _ranges(numbers: list[int]) -> str:
    """`7`, `{0-3,7}`; nothing for what has no number."""
    if numbers == [-1]:
        return ""
    numbers = sorted(numbers)
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    said = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return said if len(numbers) == 1 else f"{{{said}}}"


def _assemble(checkpoint: weights.Checkpoint, path: str, spec: ParamSpec) -> np.ndarray:
    whole = np.empty(spec.shape, spec.dtype)
    for layer, name in zip(whole if spec.sizes(0) else [whole], names(path, spec), strict=True):
        read_into(layer, checkpoint.read(name), path, spec)
    return whole


def _place(array: np.ndarray, sharding: Any) -> jax.Array:
    """The array on its devices. Waits for it: copies under way would keep their sources on the host."""
    if sharding is None:
        return jnp.asarray(array).block_until_ready()
    # From a callback, so that in a run of several processes each places its own part only.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]).block_until_ready()


def _leaves(config: Decoder, params: Tree) -> dict[str, Any]:
    """The leaves by path, checked against the specs; biases that a checkpoint needs and the model lacks are `None`."""
    known = {path: spec for path, spec in trees.flatten(specs(config)).items() if not spec.optional}
    leaves = {path: leaf for path, leaf in trees.flatten(params).items() if leaf is not None}
    shapes = {path: jax.eval_shape(lambda w: dense(w), leaf).shape for path, leaf in leaves.items() if path in known}
    faults = {
        "missing": [path for path, spec in known.items() if path not in leaves and not path.endswith("_bias")],
        "without a place there": [path for path in leaves if path not in known],
        "of another shape than the config says": [
            f"{path} {list(found)} instead of {list(known[path].shape)}"
            for path, found in shapes.items()
            if found != known[path].shape
        ],
    }
    if said := _said(faults):
        raise Fault(f"the parameters do not make a Hugging Face Llama: {said}")
    return {path: leaves.get(path) for path in known}


def _write(
    directory: Path, config: Decoder, leaves: Mapping[str, Any], tokenizer: Tokenizer | None, shard_bytes: int
) -> None:
    flat_specs = trees.flatten(specs(config))
    extra: dict[str, Any] = {}
    if tokenizer is not None:
        tokenizer.save(directory)
        extra = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    config_json.write(directory, config, extra)
    shapes = {name: shape(path, flat_specs[path]) for path in leaves for name in names(path, flat_specs[path])}
    weights.write(directory, shapes, np.dtype(config.dtype), _tensors(leaves, flat_specs), shard_bytes)


def _tensors(leaves: Mapping[str, Any], flat_specs: Mapping[str, ParamSpec]) -> Iterator[np.ndarray]:
    """The stored tensors. Layers come from the device one by one: a whole parameter, once fetched, would stay."""
    for path, leaf in leaves.items():
        spec = flat_specs[path]
        for index in range(spec.shape[0]) if spec.sizes(0) else [...]:
            # All arrays of a quantised or edited weight carry the layer axis too.
            layer = jax.tree.map(lambda x: x[index], leaf)  # noqa: B023 (used within the iteration)
            if leaf is None:
                layer = np.zeros(spec.shape[1:], spec.dtype)
            elif not isinstance(leaf, jax.Array | np.ndarray):
                layer = dense(layer, jnp.float32)
            yield stored(np.asarray(layer), path, spec, np.dtype(spec.dtype))


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


def _replace(directory: Path, partial: Path) -> None:
    """Puts the finished directory in its place, with what else the old one held."""
    if not directory.exists():
        partial.rename(directory)
        return
    for old in directory.iterdir():
        ours = old.name == config_json.CONFIG or old.name.endswith((".safetensors", ".safetensors.index.json"))
        if ours or (partial / old.name).exists():
            continue
        if old.is_dir():
            shutil.copytree(old, partial / old.name, symlinks=True)
        else:
            shutil.copy2(old, partial / old.name, follow_symlinks=False)
    retired = directory.with_name(f".{directory.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    directory.rename(retired)
    try:
        partial.rename(directory)
    except OSError:
        retired.rename(directory)
        raise
    shutil.rmtree(retired, ignore_errors=True)
