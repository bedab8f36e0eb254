# SPDX-License-Identifier: Apache-2.0
"""Devices that are not there."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.faults import Fault
from jaxpost.shard.aot import GPUS, topology

COMPILES = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


@pytest.mark.parametrize("name", GPUS)
def test_programs_for_gpus(name):
    if not COMPILES:
        with pytest.raises(Fault, match=rf"no GPU '{name}' to compile for \(.*\); install jaxpost\[cuda\]"):
            topology(name)
        pytest.skip("compiling for GPUs needs jaxpost[cuda]")
    devices = topology(f"{name}:2")
    assert [device.device_kind for device in devices] == 2 * [GPUS[name].name]
    cut = NamedSharding(Mesh(np.array(devices), ("fsdp",)), P(None, "fsdp"))
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=cut)
    program = jax.jit(lambda x, y: x @ y.T).lower(x, x).compile()
    assert "all-reduce" in program.as_text()
    assert program.memory_analysis().argument_size_in_bytes == 2 * x.size  # half of each of the two, two bytes a number


@pytest.mark.parametrize("name", ["h200:x", "h200:2x4"])
def test_so_many_gpus(name):
    with pytest.raises(Fault, match="names no GPUs to compile for; name how many of a host there are, like h200:8"):
        topology(name)


@pytest.mark.parametrize("name", ["v9:2x2", "b9000"])
def test_what_is_not_known(name):
    with pytest.raises(
        Fault, match=f"no TPU topology '{name}' to compile for .* like v5e:2x4, or one of the GPUs a100, "
    ):
        topology(name)
