# SPDX-License-Identifier: Apache-2.0
"""Where Mosaic kernels for Hopper GPUs run."""

import jax

from jaxpost.kernels.dispatch import Unsupported
from jaxpost.shard import device_kind, platform

KINDS = ("H100", "H200", "GH200")
OLDEST = (0, 11)
"""Of jax, that has what the kernels are made of."""


def check_device() -> None:
    """Raises `Unsupported` where the program being traced is for other devices, or jax is too old."""
    if platform() not in ("gpu", "cuda"):
        raise Unsupported("needs an NVIDIA GPU")
    if not any(name in device_kind() for name in KINDS):
        raise Unsupported(f"is for Hopper GPUs, not for {device_kind()}")
    if jax.__version_info__ < OLDEST:
        raise Unsupported(f"needs jax {OLDEST[0]}.{OLDEST[1]}")
