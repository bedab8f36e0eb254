# SPDX-License-Identifier: Apache-2.0
"""The mesh: how many devices each parallel axis has."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxpost.faults import Fault


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; -1 takes what the others leave.

    data: copies of the weights, each with its own rows (data parallel).
    fsdp: weights and optimiser state are cut along it and gathered where used (ZeRO-3); rows are cut too.
    tensor: heads, feed-forward and vocabulary are cut along it; activations travel instead of weights.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def resolve(self, devices: int) -> "MeshShape":
        sizes = dataclasses.asdict(self)
        free = [name for name, size in sizes.items() if size == -1]
        given = math.prod(size for size in sizes.values() if size != -1)
        if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise Fault(f"mesh {sizes}: sizes are positive, and at most one of them is -1 (what the others leave)")
        if devices % given or (not free and devices != given):
            raise Fault(f"mesh {sizes} does not fit {devices} devices; the sizes' product must be {devices}")
        return dataclasses.replace(self, **{name: devices // given for name in free})


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of this shape over the given devices, or over all there are. Axes are automatic: XLA places the
    collectives, explicit constraints say where arrays must live."""
    sizes = dataclasses.asdict(shape.resolve(len(jax.devices() if devices is None else devices)))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)


def platform() -> str:
    """What the program being traced will run on, `cpu`, `gpu` or `tpu`: the mesh in context says; without one, the
    default backend.

    Under a mesh of a topology that this host does not have (compilation ahead of time) it is the topology's.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = device.platform if device is not None and device.platform else jax.default_backend()
    return "gpu" if name == "cuda" else name  # a topology that is not there has its compiler's name


def device_kind() -> str:
    """What the devices call themselves that the program being traced will run on: `NVIDIA H200`, `TPU v5 lite`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None and device.device_kind else jax.devices()[0].device_kind


def on_one_device() -> bool:
    """Whether arrays of the program being traced are one device's own: without a mesh, on a mesh of one device, and
    inside a shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual
