# SPDX-License-Identifier: Apache-2.0
"""What callers of the grouped matrix product see."""

from collections.abc import Callable

from jaxpost.arrays import Array, Float, Int
from jaxpost.kernels.dispatch import dispatch
from jaxpost.kernels.ragged_matmul import blocks, reference

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "blocks": blocks.ragged_matmul,
    "reference": reference.ragged_matmul,
}


def ragged_matmul(
    x: Float[Array, "t i"], w: Float[Array, "g i o"], sizes: Int[Array, "g"], impl: str | None = None
) -> Float[Array, "t o"]:
    """The first `sizes[0]` rows of x times `w[0]`, the next `sizes[1]` times `w[1]`, and so on: what a mixture of
    experts does with its tokens. The sizes sum to the number of rows; a group may be empty."""
    return dispatch("ragged_matmul", IMPLEMENTATIONS, impl)(x, w, sizes)
