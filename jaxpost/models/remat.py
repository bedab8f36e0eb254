# SPDX-License-Identifier: Apache-2.0
"""What a block keeps for its backward pass, and what it computes again."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import checkpoint_policies as policies

Remat = Literal["auto", "none", "dots", "most", "attention", "result", "full"]
"""none: keep everything. dots: keep what matrix products made. most: keep queries, keys, values, the attention's
result, the middle of the block, the MLP's two branches, and what edits keep for their own gradients. attention: the
same without the last two. result: keep the attention's result only. full: keep nothing but the blocks' inputs. They
stand from most memory to least; names save better than dots
(half the memory at equal speed). What low-rank updates keep, r numbers a token, is always kept: fused with the base's
product, it could only be made again together with it. auto: whoever compiles tries which of them fits; else none."""

FASTEST: tuple[Remat, ...] = ("most", "attention", "result", "full")
"""What `auto` tries where memory is limited, the fastest first: on accelerators `none` is slower than `most`, since
writing and reading what is kept takes longer than making it again."""

_NAMES = {
    "most": ("qkv", "attn", "mid", "gate_up", "scaled"),
    "attention": ("qkv", "attn", "mid"),
    "result": ("attn",),
}
_ALWAYS = ("low",)


def rematerialised(block: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The block of a layer scan under a policy. Forwards and backwards are separate loops there, so nothing could be
    merged back, and the barriers that guard against it elsewhere would only be in the way."""
    if remat in ("none", "auto"):
        return block
    if remat == "full":
        return jax.checkpoint(block, policy=policies.save_only_these_names(*_ALWAYS), prevent_cse=False)
    if remat == "dots":
        # A kernel's product is none to JAX, but it has a name.
        named = policies.save_only_these_names("product", *_ALWAYS)
        either = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, named)
        return jax.checkpoint(block, policy=either, prevent_cse=False)
    return jax.checkpoint(block, policy=_names_and_attention((*_NAMES[remat], *_ALWAYS)), prevent_cse=False)


def _names_and_attention(names: tuple[str, ...]) -> Callable[..., bool]:
    """Saving a name alone does not stop a fused attention from running again to rebuild its own residuals."""
    named = policies.save_only_these_names(*names)

    def policy(primitive: Any, *args: Any, **params: Any) -> bool:
        return "dot_product_attention" in primitive.name or named(primitive, *args, **params)

    return policy
