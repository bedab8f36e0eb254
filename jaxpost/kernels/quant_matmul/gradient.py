# SPDX-License-Identifier: Apache-2.0
"""What is around a kernel's product: the gradient, and what becomes of it under `jax.vmap`."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxpost.arrays import Array
from jaxpost.kernels.quant_matmul.reference import Low, quant_matmul
from jaxpost.quant import QArray

Kernel = Callable[[Array, QArray, Low | None], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def served(kernel: Kernel, x: Array, w: QArray, low: Low | None) -> Array:
    """The kernel's product, with the gradients of the reference. Mapped over examples that have factors of their own
    (`delta.Bank`) it is the reference, which reads the matrix once for all of them."""
    alone = jax.custom_batching.custom_vmap(kernel)

    @alone.def_vmap
    def _(size: int, mapped: Any, *arrays: Any) -> Any:
        axes = jax.tree.map(lambda each: 0 if each else None, mapped)
        return jax.vmap(quant_matmul, axes, axis_size=size)(*arrays), True

    return alone(x, w, low)


def _forward(kernel: Kernel, x: Array, w: QArray, low: Low | None) -> tuple[Array, Any]:
    return served(kernel, x, w, low), (x, w, low)


def _backward(kernel: Kernel, saved: Any, g: Array) -> Any:
    del kernel
    return jax.vjp(quant_matmul, *saved)[1](g)


served.defvjp(_forward, _backward)
