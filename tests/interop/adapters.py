# SPDX-License-Identifier: Apache-2.0
"""The golden adapters (tests/golden/README.md): our logits under each."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from jaxpost import delta
from jaxpost.interop import load
from jaxpost.models import decoder

GOLDEN = Path(__file__).parent.parent / "golden"


@partial(jax.jit, static_argnums=0)
def _logits(config: Any, weights: Any, ids: jax.Array) -> jax.Array:
    """All in one program: each operation by itself would be compiled by itself."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return decoder.logits(config, weights, ids, decoder.rows(ids, jnp.ones_like(ids), positions))


@cache
def base(name: str) -> tuple[Any, Any]:
    return load(GOLDEN / name, dtype="float32")


def numbers(directory: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """The base's name, the tokens and the other library's logits."""
    with safe_open(directory / "numbers.safetensors", "numpy") as file:
        return file.metadata()["base"], file.get_tensor("tokens"), file.get_tensor("logits")


def logits(config: Any, weights: Any, tokens: np.ndarray, virtual: int = 0) -> np.ndarray:
    """Ours, of rows that begin with so many reserved places."""
    reserved = np.broadcast_to(-1 - np.arange(virtual), (len(tokens), virtual))
    return np.asarray(_logits(config, weights, np.concatenate([reserved, tokens], axis=1).astype(np.int32)))


def virtual(edits: Any) -> int:
    """How many places a delta's prompt or prefix takes."""
    for path, edit in edits.items():
        if path == "prompt" or path.endswith("prefix_k"):
            return edit.value.shape[-2 if path == "prompt" else -3]
    return 0


def error(name: str, edits: Any, golden: Path) -> float:
    """The largest difference of our logits from theirs. A prefix has no logits of its own there."""
    config, params = base(name)
    _, tokens, theirs = numbers(golden)
    ours = logits(config, delta.bind(params, edits), tokens, virtual(edits))
    return float(np.max(np.abs(ours[:, -theirs.shape[1] :] - theirs)))


def trained(config: Any, params: Any, method: Any) -> Any:
    """A delta as if it had been trained: random numbers, some way from where the method starts."""
    rng = np.random.default_rng(0)

    def drawn(of: Any) -> Any:
        return np.asarray(0.2 * rng.standard_normal(of.shape), np.float32)

    mine, fixed = delta.partition(method(decoder.specs(config)))
    key = jax.random.key(0)
    rest = jax.tree.map(lambda spec: spec.init(key, spec.shape, jnp.float32), fixed)
    begun = delta.combine(jax.tree.map(drawn, mine), rest)
    if type(method).start is not delta.Method.start:
        begun = jax.jit(lambda edits, base: method.start(edits, delta.Given(base, key)))(begun, params)
    mine, fixed = delta.partition(begun)
    return delta.combine(jax.tree.map(lambda x: jax.device_put(np.asarray(x) + drawn(x)), mine), fixed)
