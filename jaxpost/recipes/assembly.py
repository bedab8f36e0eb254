# SPDX-License-Identifier: Apache-2.0
"""What is known of a run before a single number exists: every array's shape, type and place."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost import delta, params, shard, trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.data.tokenizers import Tokenizer, Virtual, with_virtual
from jaxpost.faults import Fault
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.recipes.compiling import Program, program
from jaxpost.train import optimisers
from jaxpost.train import state as states
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.state import State

DeltaConfig = (
    delta.Lora
    | delta.Full
    | delta.Adapters
    | delta.BitDelta
    | delta.Prompt
    | delta.Ptuning
    | delta.Prefix
    | delta.Dora
    | delta.AdaLora
    | delta.Ia3
    | delta.BitFit
    | delta.Vera
    | delta.Select
    | delta.Head
    | delta.Both
    | delta.ActorCritic
)


@dataclass(frozen=True)
class Assembly:
    """`state` and `frozen` are abstract, with shardings; `make` draws the state and the fixed half of the delta, which
    may start from the base's weights."""

    config: Decoder
    mesh: Mesh
    optimiser: optax.GradientTransformation
    trainable: Tree
    state: State
    frozen: dict[str, Tree]
    make: Callable[[Key, Tree], tuple[State, Tree]]

    def programs(self, step: Callable[..., Any], evaluate: Callable[..., Any], batch: Any) -> dict[str, Program]:
        """What updates the state from a batch, and what measures `trainable` on one. The state is overwritten; the
        base never is, since others read it too."""
        mesh = self.mesh
        return {
            "step": program(step, mesh, self.state, self.frozen, batch, abstract_key(mesh), donated=(0,)),
            "evaluate": program(evaluate, mesh, self.state.trainable, self.frozen, batch),
        }

    @property
    def parameters(self) -> int:
        return params.count(decoder.specs(self.config))

    @property
    def trained_parameters(self) -> int:
        return params.count(self.trainable)

    @property
    def flops_per_token(self) -> float:
        """Model arithmetic of one trained token, attention scores left out: 2 a weight forwards, 2 for the gradient of
        the activation, and 2 for the weight's own gradient where every number of it is trained. Of experts, those that
        a token goes through."""
        flat = trees.flatten(decoder.specs(self.config))
        weights = {p: s for p, s in flat.items() if not s.optional and s.groups[1] and s.groups[2]}
        if not self.config.tied:
            del weights["embed"]  # looked up, not multiplied
        weights.pop("positions", None)
        dense = {path for path, edit in self.trainable.items() if isinstance(edit, delta.Dense)}
        experts = self.config.experts
        share = experts.active / experts.count if experts else 1.0
        used = {p: math.prod(s.shape) * (share if "e" in s.groups[0] else 1.0) for p, s in weights.items()}
        return sum(size * (6 if p in dense else 4) for p, size in used.items())


def assemble(
    config: Decoder,
    stored: Tree,
    kind: DeltaConfig,
    optim: Optimiser,
    steps: int,
    mesh: Mesh,
    encode: Callable[[str], list[int]] | None = None,
    read: Callable[[str], delta.Delta] | None = None,
    extra: Tree | Callable[[Tree], Tree] = None,
) -> Assembly:
    """Everything derived from the specs of the model, of its weights as they are `stored`, and of the delta. `encode`
    (text to ids) and `read` (the delta of another run) are for deltas that start from text or from a run. `extra` is
    what a recipe updates after each step, as it starts: a few numbers, or a function that makes it of what is
    trained."""
    others = {name: read(name) for name in kind.reads} if read else {}  # now: nothing can be read while tracing
    reader = others.__getitem__ if others else None
    whole = kind(decoder.specs(config))
    trainable, fixed = delta.partition(whole)
    if not jax.tree.leaves(trainable):
        raise Fault(f"delta: {type(kind).__name__} trains nothing as it is set; give it targets")
    optimiser = kind.optimiser(optimisers.make(optim, steps, trainable), trainable, steps)

    def make(key: Key, base: Tree) -> tuple[State, Tree]:
        begun = kind.start(params.init(whole, key), _given(config, base, key, encode, reader))
        mine, rest = delta.partition(begun)
        return states.start(mine, optimiser, extra(mine) if callable(extra) else extra), rest

    state, rest = jax.eval_shape(make, jax.eval_shape(jax.random.key, 0), params.abstract(stored))
    state_places = states.shardings(state, shard.shardings(trainable, mesh), mesh, optim.paged)
    fixed_places = shard.shardings(fixed, mesh)
    frozen = {"base": params.abstract(stored), "fixed": rest}
    frozen_places = {"base": shard.shardings(stored, mesh), "fixed": fixed_places}
    return Assembly(
        config=config,
        mesh=mesh,
        optimiser=optimiser,
        trainable=trainable,
        state=_placed(state, state_places),
        frozen=_placed(frozen, frozen_places),
        make=jax.jit(make, out_shardings=(state_places, fixed_places)),
    )


def _given(
    config: Decoder,
    base: Tree,
    key: Key,
    encode: Callable[[str], list[int]] | None,
    read: Callable[[str], delta.Delta] | None,
) -> delta.Given:
    """What a method may start from, the base's own ways of reading ids among it."""

    def embed(ids: Array) -> Array:
        return decoder.embed(config, base, ids[None])[0]

    def attended(ids: Array) -> dict[str, tuple[Array, Array]]:
        places = decoder.rows(ids[None], jnp.ones_like(ids)[None], jnp.arange(ids.shape[0])[None], most=1)
        _, kept = decoder.trunk(config, base, embed(ids)[None], places, keep=True)
        assert kept is not None
        return {path: (k[:, 0], v[:, 0]) for path, (k, v) in kept.items()}

    return delta.Given(base, key, encode, read, embed, attended, decoder.specs(config))


def reserving(tokenizer: Tokenizer, kind: DeltaConfig) -> Tokenizer:
    """The tokenizer with the places that a delta of this kind needs in every example."""
    return with_virtual(tokenizer, Virtual(kind.virtual, kind.place))


def abstract_batch(rows: int, length: int, mesh: Mesh) -> dict[str, Any]:
    """A batch as the loader makes it, without its numbers."""
    place = shard.rows(mesh)
    types = {"tokens": jnp.int32, "targets": jnp.int32, "segments": jnp.int32, "positions": jnp.int32}
    types["mask"] = jnp.float32
    return {name: jax.ShapeDtypeStruct((rows, length), dtype, sharding=place) for name, dtype in types.items()}


def abstract_key(mesh: Mesh) -> Any:
    key = jax.eval_shape(jax.random.key, 0)
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, P()))


def _placed(tree: Tree, places: Tree) -> Tree:
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, places)
