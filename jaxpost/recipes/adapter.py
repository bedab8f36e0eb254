# SPDX-License-Identifier: Apache-2.0
"""An adapter from elsewhere over a base, as edits laid out on a mesh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpost import delta, shard, trees
from jaxpost.arrays import Tree
from jaxpost.delta.contract import fills
from jaxpost.faults import Fault
from jaxpost.interop import adapters
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.params import ParamSpec, constant


def read(name: str, config: Decoder, base: Tree, mesh: Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
    """The delta that the directory of that name holds for this base, each array where its axes say, and its specs."""
    directory = Path(name)
    if not directory.is_dir():
        raise Fault(f"{name}: no such directory; an adapter is one with adapter_config.json and its tensors")
    made = adapters.load(directory, config, base)
    flat = trees.flatten(decoder.specs(config))
    specs = {path: of(edit, flat[path]) for path, edit in made.items()}
    return jax.device_put(made, shard.shardings(specs, mesh)), specs


def of(edit: Any, spec: ParamSpec) -> Any:
    """The edit of a parameter with a spec in the place of each array."""
    lead, inner, outer = (" ".join(letters) for letters in spec.groups)

    def one(array: Any, letters: str) -> ParamSpec:
        dims = f"{lead} : : {letters}"
        return ParamSpec(array.shape, dims, constant(0.0), jnp.float32, derived=True, layers=spec.layers)

    return jax.tree.map(one, edit, edit.letters(inner, outer))


def check_startable(name: str, made: Mapping[str, Any]) -> None:
    """A run's own delta reserves places, or fills slots, as if there were none in the base."""
    if taken := [path for path, edit in made.items() if fills(edit) and not path.endswith("_bias")]:
        raise Fault(
            f"model.adapter {name}: it fills {taken[0]}, and a run starts from adapters of weights only; "
            "merge nothing into a run that is to learn a prompt, a prefix or an adapter of its own"
        )


def reserved(made: Mapping[str, Any]) -> int:
    """How many places in front of every example a delta's prompt or prefix takes."""
    for path, edit in delta.spread(made).items():
        if path == "prompt":
            return edit.value.shape[0]
        if path.endswith("attn/prefix_k"):
            return edit.value.shape[-3]
    return 0


def without(weights: Tree, made: Mapping[str, Any]) -> Tree:
    """The weights that an adapter was laid over, again."""
    flat = trees.flatten(weights)
    for path, edit in made.items():
        flat[path] = None if fills(edit) else flat[path].w
    return trees.unflatten(flat)
