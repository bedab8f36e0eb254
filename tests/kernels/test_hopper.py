# SPDX-License-Identifier: Apache-2.0
"""Which device and which jax the kernels for Hopper GPUs ask for."""

import jax
import pytest

from jaxpost.kernels import hopper
from jaxpost.kernels.dispatch import Unsupported


@pytest.mark.parametrize(
    "platform, kind, version, why",
    [
        ("cpu", "cpu", (0, 11, 0), "needs an NVIDIA GPU"),
        ("gpu", "NVIDIA A100-SXM4-80GB", (0, 11, 0), "is for Hopper GPUs, not for NVIDIA A100-SXM4-80GB"),
        ("gpu", "NVIDIA H200", (0, 10, 2), "needs jax 0.11"),
        ("gpu", "NVIDIA GH200 480GB", (0, 12, 0), None),
        ("cuda", "NVIDIA H100 80GB HBM3", (0, 11, 0), None),
    ],
)
def test_a_refusal_says_why(monkeypatch, platform, kind, version, why):
    monkeypatch.setattr(hopper, "platform", lambda: platform)
    monkeypatch.setattr(hopper, "device_kind", lambda: kind)
    monkeypatch.setattr(jax, "__version_info__", version)
    if why is None:
        hopper.check_device()
        return
    with pytest.raises(Unsupported, match=f"^{why}$"):
        hopper.check_device()
