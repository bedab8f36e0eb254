# SPDX-License-Identifier: Apache-2.0
"""Which devices, and which jax, kernels ask for."""

import jax
import pytest

from jaxpost.kernels import devices
from jaxpost.kernels.dispatch import Unsupported, forced


@pytest.mark.parametrize(
    "platform, kind, version, why",
    [
        ("cpu", "cpu", (0, 11, 0), "needs an NVIDIA GPU"),
        ("gpu", "NVIDIA A100-SXM4-80GB", (0, 11, 0), "is for Hopper GPUs, not for NVIDIA A100-SXM4-80GB"),
        ("gpu", "NVIDIA H200", (0, 10, 2), "needs jax 0.11"),
        ("gpu", "NVIDIA GH200 480GB", (0, 12, 0), None),
        ("gpu", "NVIDIA H100 80GB HBM3", (0, 11, 0), None),
    ],
)
def test_a_refusal_says_why(monkeypatch, platform, kind, version, why):
    monkeypatch.setattr(devices, "platform", lambda: platform)
    monkeypatch.setattr(devices, "device_kind", lambda: kind)
    monkeypatch.setattr(jax, "__version_info__", version)
    if why is None:
        devices.check_hopper()
        return
    with pytest.raises(Unsupported, match=f"^{why}$"):
        devices.check_hopper()


def test_tpu_kernels_are_for_tpus_and_the_interpreter(monkeypatch):
    with pytest.raises(Unsupported, match="^needs a TPU$"):
        devices.check_tpu()
    with forced(interpreted=True):
        devices.check_tpu()
    monkeypatch.setattr(devices, "platform", lambda: "tpu")
    devices.check_tpu()
