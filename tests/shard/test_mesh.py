# SPDX-License-Identifier: Apache-2.0
"""The shape of the mesh."""

import jax
import pytest
from jax.sharding import AxisType

from jaxpost.faults import Fault
from jaxpost.shard import MeshShape, make_mesh, platform


@pytest.mark.parametrize(
    "shape, devices, sizes",
    [
        (MeshShape(), 8, (1, 8, 1)),
        (MeshShape(2, -1, 2), 8, (2, 2, 2)),
        (MeshShape(-1, 1, 4), 8, (2, 1, 4)),
        (MeshShape(1, 1, 1), 1, (1, 1, 1)),
        (MeshShape(2, -1, 4), 8, (2, 1, 4)),
    ],
)
def test_minus_one_takes_the_rest(shape, devices, sizes):
    assert shape.resolve(devices) == MeshShape(*sizes)


@pytest.mark.parametrize(
    "shape, text",
    [
        (MeshShape(-1, -1, 1), "at most one"),
        (MeshShape(0, -1, 1), "positive"),
        (MeshShape(-2, 1, 1), "positive"),
        (MeshShape(3, -1, 1), "does not fit 8 devices"),
        (MeshShape(2, 2, 1), "must be 8"),
        (MeshShape(4, 4, 1), "must be 8"),
    ],
)
def test_a_shape_that_does_not_fit_is_a_fault(shape, text):
    with pytest.raises(Fault, match=text):
        shape.resolve(8)


def test_make_mesh_names_its_axes_and_leaves_placing_to_the_compiler():
    mesh = make_mesh(MeshShape(2, 2, 2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert make_mesh(MeshShape(), jax.devices()[:2]).size == 2


def test_platform_is_the_default_one_and_that_of_the_mesh():
    assert platform() == "cpu"
    with jax.set_mesh(make_mesh(MeshShape())):
        assert platform() == "cpu"
        assert jax.jit(lambda: 0 if platform() == "cpu" else 1)() == 0
