# SPDX-License-Identifier: Apache-2.0
"""What callers of the grouped matrix product see."""

from collections.abc import Callable

from jaxpost.arrays import Array, Float
from jaxpost.kernels.dispatch import dispatch
from jaxpost.kernels.ragged_matmul import blocks, reference
from jaxpost.kernels.ragged_matmul.layout import Groups

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "blocks": blocks.ragged_matmul,
    "reference": reference.ragged_matmul,
}


def ragged_matmul(
    x: Float[Array, "p i"], w: Float[Array, "g i o"], groups: Groups, impl: str | None = None
) -> Float[Array, "p o"]:
    """Rows at their places (`Groups.lay`) times the matrix of each one's group: what a mixture of experts does with its
    tokens. A group may be empty; what stands where there is no row is not defined."""
    return dispatch("ragged_matmul", IMPLEMENTATIONS, impl)(x, w, groups)
