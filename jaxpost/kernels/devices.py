# SPDX-License-Identifier: Apache-2.0
"""Which devices kernels are for: each asks first, and says why not."""

import jax

from jaxpost.kernels.dispatch import Unsupported, interpreted
from jaxpost.shard import device_kind, platform

HOPPER = ("H100", "H200", "GH200")
OLDEST = (0, 11)
"""Of jax, that has what the kernels are made of."""


def check_tpu() -> None:
    """Raises `Unsupported` where the program being traced is for other devices, unless its kernels are interpreted."""
    if platform() != "tpu" and not interpreted():
        raise Unsupported("needs a TPU")


def check_hopper() -> None:
    """Raises `Unsupported` where the program being traced is for other devices, or jax is too old."""
    if platform() != "gpu":
        raise Unsupported("needs an NVIDIA GPU")
    if not any(name in device_kind() for name in HOPPER):
        raise Unsupported(f"is for Hopper GPUs, not for {device_kind()}")
    if jax.__version_info__ < OLDEST:
        raise Unsupported(f"needs jax {OLDEST[0]}.{OLDEST[1]}")
