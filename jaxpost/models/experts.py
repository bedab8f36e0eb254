# SPDX-License-Identifier: Apache-2.0
"""A mixture of expert MLPs (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538): each token goes through a few."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpost.arrays import Array, Float, Tree
from jaxpost.delta import einsum, letters_of, ragged
from jaxpost.kernels.ragged_matmul import grouped
from jaxpost.models.architecture import Experts
from jaxpost.params import ParamSpec
from jaxpost.quant import apart
from jaxpost.shard import Rules, on_each, ways


def mixture(
    experts: Experts,
    act: Callable[[Array], Array],
    w: Tree,
    specs: Mapping[str, ParamSpec],
    x: Float[Array, "b s d"],
    rules: Rules,
) -> Float[Array, "b s d"]:
    """The chosen experts' results, summed by the router's weights.

    No token is dropped: the rows of all (token, choice) pairs are laid out by expert, each expert's stretch meets its
    weights, and the rows go back to where they came from. On a mesh every device sorts the tokens that it has, and sums
    what the pieces of the feed-forward width give. `specs` are those of the block, by path.
    """
    shares, chosen = _route(experts, w["router"], x)
    pieces = apart({name: w[name] for name in ("gate", "up", "down") if name in w}, ways("f", rules))

    def local(x: Array, shares: Array, chosen: Array, w: Tree) -> Array:
        flat = x.reshape(-1, x.shape[-1])
        groups = grouped(chosen.reshape(-1), experts.count)
        rows = groups.lay(flat, experts.active)
        up = checkpoint_name(ragged(rows, w["up"], groups), "gate_up")
        if "gate" in w:
            up = act(checkpoint_name(ragged(rows, w["gate"], groups), "gate_up")) * up
        else:
            up = act(up)
        results = ragged(up, w["down"], groups)[groups.place].reshape(*shares.shape, -1)
        return jnp.einsum("bsad,bsa->bsd", results, shares.astype(results.dtype))

    axes = {name: letters_of(piece, specs[f"mlp/{name}"]) for name, piece in pieces.items()}
    letters = "b s d", "b s a", "b s a", axes
    return on_each(local, "b s", ("f", experts.ffn), letters, "b s d", rules)(x, shares, chosen, pieces)


def _route(experts: Experts, router: Any, x: Array) -> tuple[Array, Array]:
    """Weights and numbers of the chosen experts, `[b, s, active]`."""
    probabilities = jax.nn.softmax(einsum("bsd,de->bse", x, router).astype(jnp.float32), axis=-1)
    shares, chosen = jax.lax.top_k(probabilities, experts.active)
    if experts.renormalised:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return shares, chosen
