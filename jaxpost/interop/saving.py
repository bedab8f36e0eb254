# SPDX-License-Identifier: Apache-2.0
"""From arrays on devices to stored tensors, one at a time, and a directory put in its place as a whole."""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxpost import trees
from jaxpost.arrays import Array, Tree
from jaxpost.delta import dense
from jaxpost.faults import Fault
from jaxpost.interop import config_json, names
from jaxpost.interop.families import Family
from jaxpost.interop.listing import faults_in_words
from jaxpost.models.architecture import Decoder, specs
from jaxpost.params import ParamSpec


def checked(family: Family, config: Decoder, params: Tree) -> dict[str, Any]:
    """The leaves by path, checked against the specs; biases that a checkpoint needs and the model lacks are `None`."""
    known = {path: spec for path, spec in trees.flatten(specs(config)).items() if not spec.optional}
    leaves = {path: leaf for path, leaf in trees.flatten(params).items() if leaf is not None}
    shapes = {path: jax.eval_shape(lambda w: dense(w), leaf).shape for path, leaf in leaves.items() if path in known}
    faults = {
        "missing": [path for path in known if path not in leaves and not _fillable(path)],
        "without a place there": [path for path in leaves if path not in known],
        "of another shape than the config says": [
            f"{path} {list(found)} instead of {list(known[path].shape)}"
            for path, found in shapes.items()
            if found != known[path].shape
        ],
    }
    if wrong := faults_in_words(faults):
        raise Fault(f"the parameters do not make a {family.architecture}: {wrong}")
    return {path: leaves.get(path) for path in known}


def filled(params: Tree) -> tuple[str, ...]:
    """The weights whose biases a tree has."""
    there = (path for path, leaf in trees.flatten(params).items() if leaf is not None and _fillable(path))
    return tuple(dict.fromkeys(path.rsplit("/", 1)[-1].removesuffix("_bias") for path in there))


def _fillable(path: str) -> bool:
    """Whether it is the bias of a weight: those of norms are no slots."""
    return path.endswith("_bias") and path.rsplit("/", 1)[0].endswith(("attn", "mlp"))


def tensors(family: Family, config: Decoder, leaves: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The stored tensors by name. Matrices come from the devices one by one: a whole parameter, once fetched, would
    stay, and one that is spread over devices is on no host whole."""
    flat, dtype = trees.flatten(specs(config)), np.dtype(config.dtype)
    groups = names.grouped(names.parts(family, config))
    for name, shape in names.shapes(slot for group in groups.values() for slot in group).items():
        matrices = ((slot, _matrix(leaves[slot.path], flat[slot.path], slot)) for slot in groups[name])
        yield name, names.tensor(matrices, shape, dtype)


def _matrix(leaf: Any, spec: ParamSpec, slot: names.Slot) -> np.ndarray:
    shape = (slot.inner, slot.outer) if slot.inner else (slot.outer,)
    if leaf is None:
        return np.zeros(shape, spec.dtype)
    if isinstance(leaf, jax.Array) and len(leaf.devices()) == 1 and next(iter(leaf.devices())).platform == "cpu":
        leaf = np.asarray(leaf)  # the array's own memory
    if isinstance(leaf, np.ndarray):
        return leaf[slot.index].reshape(shape)
    if not slot.index and isinstance(leaf, jax.Array):
        return _host(leaf).reshape(shape)
    return _host(_layer(leaf, np.array(slot.index, np.int32), isinstance(leaf, jax.Array))).reshape(shape)


@partial(jax.jit, static_argnums=2)
def _layer(leaf: Any, index: Array, plain: bool) -> Array:
    """One index of a parameter; all arrays of a quantised or edited weight carry its lead axes too."""
    taken = jax.tree.map(lambda x: x[tuple(index)], leaf)
    return taken if plain else dense(taken, jnp.float32)


def _host(array: Array) -> np.ndarray:
    """On this host, also where other processes hold parts of it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def by_the_first_process(directory: Path, act: Callable[[], None], shared: Iterable[Any] = ()) -> None:
    """What one process does for all, which all know when this returns: if it fails, all raise. Other processes take
    part in each step of `shared`, so it is gone through to its end even then: who waits for a process that gave up
    would wait forever."""
    failure = None
    try:
        if jax.process_index() == 0:
            act()
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        deque(shared, maxlen=0)
        if multihost_utils.broadcast_one_to_all(np.array(failure is not None)) and failure is None:
            raise Fault(f"{directory}: the model could not be saved; the first process, which writes it, says why")
    if failure:
        raise failure


def check_target(directory: Path) -> None:
    empty = directory.is_dir() and not any(directory.iterdir())
    if directory.exists() and not ((directory / config_json.CONFIG).is_file() or empty):
        raise Fault(f"{directory}: exists and holds no model; save into a new or empty directory, or over a model")


def written_beside(directory: Path, write: Callable[[Path], None], without: Sequence[str] = ()) -> None:
    """What `write` makes of a directory, in its place only when all of it is there (see `replaced`)."""
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left there by a save that was killed
        partial.mkdir(parents=True)
        try:
            write(partial)
            replaced(directory, partial, without)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise Fault(f"{directory}: the model could not be saved ({reason}); what stood there is untouched") from error


def replaced(directory: Path, partial: Path, without: Sequence[str]) -> None:
    """Puts the finished directory in its place, with what else the old one held `without` what fits these patterns:
    files of another tokenizer would be read as if they were of the new one."""
    if not directory.exists():
        partial.rename(directory)
        return
    gone = {file.relative_to(directory).parts[0] for pattern in without for file in directory.glob(pattern)}
    for old in directory.iterdir():
        ours = old.name == config_json.CONFIG or old.name.endswith((".safetensors", ".safetensors.index.json"))
        if ours or old.name in gone or (partial / old.name).exists():
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
