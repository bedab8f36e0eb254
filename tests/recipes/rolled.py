# SPDX-License-Identifier: Apache-2.0
"""Rollouts of a decoder that is small enough to learn from them within a test, drawn instead of sampled."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost import delta, params, shard
from jaxpost.delta import ActorCritic, Both, Head, Lora
from jaxpost.models import decoder
from jaxpost.recipes import run
from jaxpost.recipes.assembly import Assembly, assemble
from jaxpost.recipes.rollouts import policy
from jaxpost.recipes.rollouts.prompts import Request
from jaxpost.recipes.rollouts.rollout import Rollout, lay, rewarded
from jaxpost.sample import Completion
from tests.train.tiny import CONFIG, DESCENT, copied, mesh_of
from tests.train.tiny import base as base

ROLLOUT = Rollout(prompts=2, samples=4, prompt_tokens=5, answer_tokens=6, temperature=0.8)
LENGTHS = [3, 6, 1, 4, 2, 5, 6, 1]
"""Of the answers, the end token among them; those of 6 did not end."""
REWARDS = np.array([1.0, 0.0, 0.5, -1.0, 2.0, 0.0, np.nan, 0.25], np.float32)
"""The seventh answer has none."""

METHODS = {
    "plain": Lora(rank=2, targets=("q", "down")),
    "shared": Both(Lora(rank=2, targets=("q", "down")), Head(1)),
    "apart": ActorCritic(Lora(rank=2, targets=("q", "down")), Both(Lora(rank=2, targets=("q", "down")), Head(1))),
}


def drawn(rollout: Rollout = ROLLOUT, rewards: np.ndarray = REWARDS, seed: int = 0) -> dict[str, np.ndarray]:
    """The same prompts and answers whatever room the rollout has for them, laid out as sampled ones are."""
    rng = np.random.default_rng(seed)
    prompts = [tuple(rng.integers(3, CONFIG.vocab, n).tolist()) for n in (5, 2)]
    asked = [Request(ids, "", {}) for ids in prompts for _ in range(4)]
    written = []
    for length in LENGTHS:
        tokens = rng.integers(3, CONFIG.vocab, length).tolist()
        ended = length < ROLLOUT.answer_tokens
        logs = -rng.uniform(0.5, 3.0, length).astype(np.float32)
        kept = tokens[:-1] if ended else tokens
        written.append(Completion(kept, logs, "end" if ended else "length", tokens[-1] if ended else None))
    batch = rewarded(lay(asked, written, rollout, 0), rewards[:, None], np.ones(1, np.float32), rollout)
    return {**batch, "group": np.repeat(np.arange(2, dtype=np.int32), 4)}


def assembled(config: Any, shape: Any = None) -> Assembly:
    return assemble(
        CONFIG, params.filled(decoder.specs(CONFIG)), config.delta, config.optim, 10, mesh_of(shape), extra=config.extra
    )


@functools.cache
def scattered(name: str) -> Any:
    """The trained half of a delta with every number drawn, so that policy and reference differ and all has a gradient;
    of what a policy and its critic share, the same."""

    def make() -> Any:
        whole = params.init(METHODS[name](decoder.specs(CONFIG)), jax.random.key(1))
        trainable, _ = delta.partition(whole)
        leaves, form = jax.tree.flatten(trainable)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        moved = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(form, moved)

    return jax.device_get(jax.jit(make)())


class Learner:
    """A recipe's own programs over the small decoder, from a state with drawn factors."""

    def __init__(self, recipe: Any, config: Any, name: str, shape: Any = None):
        self.config, self.assembly = config, assembled(config, shape)
        self._mesh = self.assembly.mesh
        with jax.set_mesh(self._mesh):
            self.programs = recipe.programs(config, self.assembly, {})
            placed = jax.device_put(base(), shard.shardings(params.filled(decoder.specs(CONFIG)), self._mesh))
            state, fixed = self.assembly.make(jax.random.key(0), placed)
            self.frozen = {"base": placed, "fixed": fixed}
        self._places = jax.tree.map(lambda leaf: leaf.sharding, state)
        self._begun = copied(state).replace(trainable=scattered(name))

    @property
    def state(self) -> Any:
        """As it begins."""
        return jax.device_put(self._begun, self._places)

    @property
    def weights(self) -> Any:
        """The policy as it begins."""
        whole = delta.combine(self.state.trainable, self.frozen["fixed"])
        return delta.bind(self.frozen["base"], delta.role(whole))

    def observed(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch as the recipe's step takes it; the policy that sampled was this one, exactly."""
        given = {name: batch[name] for name in policy.abstract_rollout(self.config.rollout, self._mesh)}
        with jax.set_mesh(self._mesh):
            trainable = jax.device_put(self._begun.trainable, self._places.trainable)
            found = self.programs["observe"].call(trainable, self.frozen, run.place(given, self._mesh))
        return {**batch, **jax.device_get(found)}

    def steps(self, *batches: dict[str, np.ndarray], **extra: Any) -> list[tuple[Any, dict[str, float]]]:
        """What each step changed of every trained leaf, and its metrics; always from the same start."""
        begun = self._begun.replace(extra={**self._begun.extra, **extra} if extra else self._begun.extra)
        state, found = jax.device_put(begun, self._places), []
        with jax.set_mesh(self._mesh):
            key = jax.device_put(jax.random.key(0), self.programs["step"].arguments[-1].sharding)
            for batch in batches:
                before = copied(state.trainable)
                placed = run.place(batch, self._mesh)
                state, metrics = self.programs["step"].call(state, self.frozen, placed, key)
                moved = jax.tree.map(lambda a, b: np.asarray(a) - b, copied(state.trainable), before)
                found.append((moved, {name: float(value) for name, value in metrics.items()}))
        self.ended = copied(state)
        return found


def settings(config: Any, **changes: Any) -> Any:
    """A config for the small decoder: plain descent, whose change of a weight is minus its gradient."""
    return replace(config, rollout=ROLLOUT, optim=DESCENT, **changes)


def close(one: Any, other: Any, tolerance: float = 1e-4) -> None:
    """Leaf by leaf, relative to the leaf's size."""
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        size = np.linalg.norm(b)
        assert np.linalg.norm(a - b) <= tolerance * max(size, 1e-3), f"{jax.tree_util.keystr(path)}: {size}"


def full(weights: Any, batch: dict[str, Any], temperature: float) -> tuple[Any, Any]:
    """Log-probabilities of everything and hidden states, at the answers' places, from whole logits."""
    rows = decoder.rows(batch["tokens"], batch["segments"], batch["positions"], most=1)
    hidden, _ = decoder.trunk(CONFIG, weights, decoder.embed(CONFIG, weights, batch["tokens"]), rows)
    logs = jax.nn.log_softmax(decoder.head(CONFIG, weights, hidden) / temperature, axis=-1)
    places = batch["start"][:, None] + jnp.arange(batch["answers"].shape[1])[None]
    take = jax.vmap(lambda x, at: x[jnp.minimum(at, x.shape[0] - 1)])
    return take(logs, places), take(hidden, places)


def wider(batch: dict[str, np.ndarray], rollout: Rollout) -> dict[str, np.ndarray]:
    """The same rollout where there is more room."""
    made = {}
    for name, x in batch.items():
        size = {ROLLOUT.length: rollout.length, ROLLOUT.answer_tokens: rollout.answer_tokens}.get(x.shape[-1])
        grows = x.ndim == 2 and size is not None
        made[name] = np.pad(x, ((0, 0), (0, size - x.shape[1]))) if grows else x
    return made
