# SPDX-License-Identifier: Apache-2.0
"""A run that has trained, read back to be used."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxpost import delta
from jaxpost.arrays import Tree
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.faults import Fault
from jaxpost.interop import hub
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import base, record
from jaxpost.recipes.assembly import assemble
from jaxpost.recipes.base import Pretrained
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.train.checkpoint import Checkpoints


@dataclass(frozen=True)
class Trained:
    """The base and what the run made of it, apart. Of a model directory that no run has changed, the delta is empty."""

    config: Any
    model: Decoder
    tokenizer: Tokenizer
    base: Tree
    delta: Tree

    @property
    def weights(self) -> Tree:
        """Ready for use: bound where the delta has a fast way of its own, as it is in training."""
        return delta.bind(self.base, self.delta)

    @property
    def folded(self) -> Tree:
        return delta.fold(self.base, self.delta)


def read(name: str, best: bool = False) -> Trained:
    """The run of that directory at its latest (or best) checkpoint; or a model that `Pretrained` takes, as it is."""
    mesh = make_mesh(MeshShape())
    path = Path(name)
    if not record.is_run(path):
        here = name in base.BUILT_IN or (path / "config.json").is_file()
        if not here and not hub.is_elsewhere(name):
            raise Fault(
                f"{name} is neither a run directory, nor a model directory, nor one of {', '.join(base.BUILT_IN)}, nor "
                "org/name of the Hugging Face hub"
            )
        with jax.set_mesh(mesh):
            plain = base.load(Pretrained(name), mesh)
        return Trained(None, plain.config, plain.tokenizer, plain.weights, {})
    config = record.read(path)
    with jax.set_mesh(mesh):
        loaded = base.load(config.model, mesh)
        # The schedule's length has no part in the state, so any number of steps will do.
        optim = replace(config.optim, warmup=0)
        assembly = assemble(loaded.config, loaded.specs, config.delta, optim, 1, mesh)
        _, fixed = assembly.make(jax.random.fold_in(jax.random.key(config.train.seed), 1))
        with Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
            state = checkpoints.restore(assembly.state, best).state
    return Trained(config, loaded.config, loaded.tokenizer, loaded.weights, delta.combine(state.trainable, fixed))
