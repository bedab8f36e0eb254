# SPDX-License-Identifier: Apache-2.0
"""A mixture of expert MLPs (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538): each token goes through a few."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpost.arrays import Array, Float, Int, Tree
from jaxpost.delta import einsum, letters_of, ragged
from jaxpost.models.architecture import Experts
from jaxpost.params import ParamSpec
from jaxpost.shard import Rules, on_each


def mixture(
    experts: Experts,
    act: Callable[[Array], Array],
    w: Tree,
    specs: Mapping[str, ParamSpec],
    x: Float[Array, "b s d"],
    rules: Rules,
) -> Float[Array, "b s d"]:
    """The chosen experts' results, summed by the router's weights.

    No token is dropped: the rows of all (token, choice) pairs are sorted by expert, each expert's stretch meets its
    weights, and the rows go back to where they came from. On a mesh every device sorts the tokens that it has, and sums
    what the pieces of the feed-forward width give. `specs` are those of the block, by path.
    """
    shares, chosen = _route(experts, w["router"], x)
    pieces = {name: w[name] for name in ("gate", "up", "down") if name in w}

    def local(x: Array, shares: Array, chosen: Array, w: Tree) -> Array:
        flat = x.reshape(-1, x.shape[-1])
        order, place, sizes = by_expert(chosen.reshape(-1), experts.count)
        sorted_rows = flat[order // experts.active]
        up = checkpoint_name(ragged(sorted_rows, w["up"], sizes), "gate_up")
        if "gate" in w:
            up = act(checkpoint_name(ragged(sorted_rows, w["gate"], sizes), "gate_up")) * up
        else:
            up = act(up)
        results = ragged(up, w["down"], sizes)[place].reshape(*shares.shape, -1)
        return jnp.einsum("bsad,bsa->bsd", results, shares.astype(results.dtype))

    axes = {name: letters_of(piece, specs[f"mlp/{name}"]) for name, piece in pieces.items()}
    letters = "b s d", "b s a", "b s a", axes
    return on_each(local, ("f", experts.ffn), letters, "b s d", rules)(x, shares, chosen, pieces)


def by_expert(expert: Int[Array, "t"], count: int) -> tuple[Int[Array, "t"], Int[Array, "t"], Int[Array, "e"]]:
    """The order that sorts rows by expert, where each row goes in it, and how many rows each expert has. By counting: a
    sort takes a TPU minutes to compile."""
    seen = jnp.cumsum(jax.nn.one_hot(expert, count, dtype=jnp.int32), axis=0)
    sizes = seen[-1]
    starts = jnp.cumsum(sizes) - sizes
    place = starts[expert] + jnp.take_along_axis(seen, expert[:, None], axis=1)[:, 0] - 1
    return jnp.zeros_like(place).at[place].set(jnp.arange(place.shape[0], dtype=place.dtype)), place, sizes


def _route(experts: Experts, router: Any, x: Array) -> tuple[Array, Array]:
    """Weights and numbers of the chosen experts, `[b, s, active]`."""
    probabilities = jax.nn.softmax(einsum("bsd,de->bse", x, router).astype(jnp.float32), axis=-1)
    shares, chosen = jax.lax.top_k(probabilities, experts.active)
    if experts.renormalised:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return shares, chosen
