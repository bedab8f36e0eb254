# SPDX-License-Identifier: Apache-2.0
"""Devices that are not there: TPU topologies and GPUs, for compiling ahead of time on a machine without them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.experimental import topologies

from jaxpost.faults import Fault


@dataclass(frozen=True)
class Gpu:
    """What XLA asks of a GPU that it compiles for: its name, compute capability, multiprocessors, 32-bit units of each
    and their GHz, shared memory of each and of a block, second-level cache and memory, all in bytes, and bytes a
    second."""

    name: str
    capability: int
    processors: int
    units: int
    clock: float
    shared: int
    shared_by_block: int
    cache: int
    memory: int
    bandwidth: float

    def description(self) -> str:
        """XLA's GpuTargetConfigProto in text. Limits that all of these GPUs share are CUDA's."""
        return f"""
            gpu_device_info {{
              name: "{self.name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64
              cuda_compute_capability {{ major: {self.capability} }}
              core_count: {self.processors} fpus_per_core: {self.units} clock_rate_ghz: {self.clock}
              memory_bandwidth: {self.bandwidth:.0f} device_memory_size: {self.memory} l2_cache_size: {self.cache}
              shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_by_block}
              shared_memory_per_core: {self.shared}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
              dnn_version: "9.10.0"
            }}
            platform_name: "CUDA" device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        """


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 167936, 166912, 40 * 2**20, 85100068864, 2.039e12),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 233472, 232448, 50 * 2**20, 84942979072, 3.352e12),
    "h200": Gpu("NVIDIA H200", 9, 132, 128, 1.98, 233472, 232448, 50 * 2**20, 151397597184, 4.8e12),
}
"""Figures from the device descriptions in OpenXLA's repository (xla/backends/gpu/target_config/specs)."""


def topology(name: str) -> Sequence[Any]:
    """The devices of a TPU topology such as `v5e:2x4`, `v5p:2x2x1` or `v6e:2x4`, or some GPUs of a host, such as `h200`
    or `h100:8`: good for compiling, not for running.

    TPUs need libtpu (the `tpu` extra), GPUs the `cuda` extra, and no device: they give the real compiler, which says
    what fits into memory and which collectives there are. Without a GPU XLA chooses products' tilings unmeasured.
    Raises `Fault` where the extra is missing, and for a name that it does not know.
    """
    kind, _, count = name.partition(":")
    return _gpus(kind, count) if kind in GPUS else _tpus(name)


def _gpus(kind: str, count: str) -> Sequence[Any]:
    if count and not count.isdecimal():
        raise Fault(f"{kind}:{count} names no GPUs to compile for; name how many of a host there are, like {kind}:8")
    try:
        return topologies.get_topology_desc(
            platform="cuda", target_config=GPUS[kind].description(), topology=f"1x1x{count or 1}"
        ).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise Fault(f"no GPU {kind!r} to compile for ({why}); install jaxpost[cuda]") from error


def _tpus(name: str) -> Sequence[Any]:
    # libtpu asks the cloud's metadata server what machine this is, and waits for an answer, unless told not to.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        # Only one process may drive a TPU, but several may compile.
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    # One chip is less than the host that libtpu assumes.
    one = {"chips_per_host_bounds": (1, 1, 1)} if name.rpartition(":")[2] in ("1x1", "1x1x1") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **one).devices
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise Fault(
            f"no TPU topology {name!r} to compile for ({why}); install jaxpost[tpu], and name one like v5e:2x4, or one "
            f"of the GPUs {', '.join(GPUS)}"
        ) from error
