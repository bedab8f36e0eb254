# SPDX-License-Identifier: Apache-2.0
"""What a block keeps for its backward pass, and what it computes again."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import checkpoint_policies as policies

Remat = Literal["none", "dots", "most", "attention", "full"]
"""none: keep everything. dots: keep what matrix products made. most: keep queries, keys, values, the attention's
result, the middle of the block, the MLP's two branches, and what edits keep for their own gradients. attention: the
same without the last two. full: keep the blocks' inputs only. From most memory to least; names save better than dots
(half the memory at equal speed)."""

_NAMES = {"most": ("qkv", "attn", "mid", "gate_up", "scaled"), "attention": ("qkv", "attn", "mid")}


def rematerialised(block: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The block of a layer scan under a policy. Forwards and backwards are separate loops there, so nothing could be
    merged back, and the barriers that guard against it elsewhere would only be in the way."""
    if remat == "none":
        return block
    if remat == "full":
        return jax.checkpoint(block, prevent_cse=False)
    if remat == "dots":
        return jax.checkpoint(block, policy=policies.dots_with_no_batch_dims_saveable, prevent_cse=False)
    return jax.checkpoint(block, policy=_names_and_attention(_NAMES[remat]), prevent_cse=False)


def _names_and_attention(names: tuple[str, ...]) -> Callable[..., bool]:
    """Saving a name alone does not stop a fused attention from running again to rebuild its own residuals."""
    named = policies.save_only_these_names(*names)

    def policy(primitive: Any, *args: Any, **params: Any) -> bool:
        return "dot_product_attention" in primitive.name or named(primitive, *args, **params)

    return policy
