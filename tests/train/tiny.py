# SPDX-License-Identifier: Apache-2.0
"""A decoder small enough to be trained for a few steps within a test, and batches for it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost import delta, params, shard, trees
from jaxpost.data.batches.packing import Shifted, lay
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import sft
from jaxpost.recipes.assembly import Assembly, assemble
from jaxpost.train.optimisers import Optimiser

CONFIG = Decoder(vocab=32, d=16, layers=2, heads=4, kv_heads=2, head_size=8, ffn=24, max_length=64)
ROWS, LENGTH = 8, 12

FULL = delta.Full()
DESCENT = Optimiser("sgd", lr=1.0, schedule="constant", clip=0.0)
"""Plain gradient descent: what a step changes is its gradient."""

CUBE = shard.MeshShape(2, 2, 2)
RIBBON = shard.MeshShape(1, 8, 1)


def mesh_of(shape: shard.MeshShape | None) -> jax.sharding.Mesh:
    """None: one device."""
    return shard.make_mesh(shape) if shape else shard.make_mesh(shard.MeshShape(1, 1, 1), devices=jax.devices()[:1])


def base() -> Any:
    """Weights large enough that every one of them matters to the loss. Arrays are made anew, where and while whoever
    asks needs them: under a mesh, or traced."""
    return jax.tree.map(jnp.asarray, _drawn())


@functools.cache
def _drawn() -> Any:
    with jax.ensure_compile_time_eval():
        flat = trees.flatten(params.init(decoder.specs(CONFIG), jax.random.key(0)))
        return trees.unflatten(
            {p: x if x is None else np.asarray(x if "norm" in p else 8 * x) for p, x in flat.items()}
        )


def placed_base(mesh: jax.sharding.Mesh) -> Any:
    return jax.device_put(base(), shard.shardings(params.filled(decoder.specs(CONFIG)), mesh))


def examples(lengths: list[int], seed: int = 0, trained: float = 0.6) -> list[Shifted]:
    """Random ones, each with at least one trained token."""
    rng = np.random.default_rng(seed)
    made = []
    for n in lengths:
        mask = (rng.random(n) < trained).astype(np.float32)
        mask[-1] = 1.0
        ids = rng.integers(1, CONFIG.vocab, n + 1).astype(np.int32)
        made.append(Shifted(ids[:-1], ids[1:], mask))
    return made


def stacked(rows: list[list[Shifted]], length: int = LENGTH) -> dict[str, np.ndarray]:
    laid = [lay(row, length, 0) for row in rows]
    return {name: np.stack([row[name] for row in laid]) for name in laid[0]}


def uneven() -> dict[str, np.ndarray]:
    """Eight rows that train very different numbers of tokens, one of them none and one of them nothing but padding."""
    rows = [[example] for example in examples([12, 12, 3, 5, 12, 2, 9], trained=0.3)] + [[]]
    batch = stacked(rows)
    batch["mask"][0] = 1.0
    batch["mask"][1] = 0.0
    assert sorted(batch["mask"].sum(axis=1))[:2] == [0.0, 0.0] and batch["mask"].sum(axis=1).max() == 12.0
    return batch


def assembled(
    shape: shard.MeshShape | None = None,
    kind: delta.Lora | delta.Full = FULL,
    optim: Optimiser = DESCENT,
    steps: int = 10,
) -> Assembly:
    return assemble(CONFIG, params.filled(decoder.specs(CONFIG)), kind, optim, steps, mesh_of(shape))


def started(assembly: Assembly, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """A state, and what is frozen beside it; factors are drawn so that none of them is zero."""
    placed = placed_base(assembly.mesh)
    state, fixed = assembly.make(jax.random.key(seed), placed)
    return state, {"base": placed, "fixed": fixed}


def config(**changes: Any) -> sft.Config:
    return sft.Config(**{"run": "", **changes})


def copied(tree: Any) -> Any:
    """On the host, safe from donation."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def identical(one: Any, other: Any) -> bool:
    """To the bit, structure and types included."""
    a, b = jax.tree.leaves(one), jax.tree.leaves(other)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(a, b, strict=True)
    )
