# SPDX-License-Identifier: Apache-2.0
"""What callers of the low-rank product see."""

from collections.abc import Callable

from jaxpost.arrays import Array, Float
from jaxpost.kernels.dispatch import dispatch, faster
from jaxpost.kernels.lowrank_matmul import pallas_gpu, pallas_tpu, reference
from jaxpost.quant import QArray

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "pallas_gpu": pallas_gpu.lowrank_matmul,
    "pallas_tpu": pallas_tpu.lowrank_matmul,
    "reference": reference.lowrank_matmul,
}


def lowrank_matmul(
    x: Float[Array, "t i"],
    w: Array | QArray,
    a: Float[Array, "i r"],
    b: Float[Array, "r o"],
    impl: str | None = None,
) -> Float[Array, "t o"]:
    """`x w + (x a) b` in x's type, summed in float32: a linear layer under a low-rank update (LoRA,
    https://arxiv.org/abs/2106.09685), whose scale is in b already.

    `w` is `[i o]`, an array or quantised, its in axes and its out axes maybe several. All four are differentiable, and
    what nobody differentiates (a frozen w) costs nothing.
    """
    return dispatch("lowrank_matmul", IMPLEMENTATIONS, impl)(x, w, a, b)


def lowrank_fused(
    x: Float[Array, "t i"], w: Array | QArray, a: Float[Array, "i r"], b: Float[Array, "r o"]
) -> Float[Array, "t o"]:
    """The same by a kernel. Raises `Unsupported` where none serves these arguments: for callers who can then write the
    three products down without merging axes."""
    return faster("lowrank_matmul", IMPLEMENTATIONS)(x, w, a, b)
