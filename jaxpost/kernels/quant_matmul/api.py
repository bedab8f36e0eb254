# SPDX-License-Identifier: Apache-2.0
"""What callers of the product with a quantised matrix see."""

from collections.abc import Callable

from jaxpost.arrays import Array, Float
from jaxpost.kernels.dispatch import dispatch, faster
from jaxpost.kernels.quant_matmul import pallas_gpu, pallas_tpu, reference
from jaxpost.quant import QArray

IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "pallas_gpu": pallas_gpu.quant_matmul,
    "pallas_tpu": pallas_tpu.quant_matmul,
    "reference": reference.quant_matmul,
}


def quant_matmul(
    x: Float[Array, "t i"],
    w: QArray,
    low: tuple[Float[Array, "i r"], Float[Array, "r o"]] | None = None,
    impl: str | None = None,
) -> Float[Array, "t o"]:
    """`x w`, or `x w + (x a) b` with the factors of a low-rank edit, for a matrix in int8, int4 or NF4 (`layout`).

    The kernels are for the few tokens of a decoding step, where the time is that of reading the matrix: they read its
    codes and make numbers of them on the way to the matrix unit. Beyond `MOST_TOKENS` the matrix is dequantised first.
    Gradients are those of the dequantised matrix; codes and scales have none.
    """
    return dispatch("quant_matmul", IMPLEMENTATIONS, impl)(x, w, low)


def quant_fused(
    x: Float[Array, "t i"], w: QArray, low: tuple[Float[Array, "i r"], Float[Array, "r o"]] | None = None
) -> Float[Array, "t o"]:
    """The same by a kernel. Raises `Unsupported` where none serves these arguments: for callers who can then dequantise
    the weight without merging axes."""
    return faster("quant_matmul", IMPLEMENTATIONS)(x, w, low)
