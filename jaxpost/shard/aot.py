# SPDX-License-Identifier: Apache-2.0
"""Devices that are not there: those of a TPU topology, for compiling ahead of time on a machine without TPUs."""

import os
from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies

from jaxpost.faults import Fault


def topology(name: str) -> Sequence[Any]:
    """The devices of a topology such as `v5e:2x4`, `v5p:2x2x1` or `v6e:2x4`: good for compiling, not for running.

    Needs libtpu (the `tpu` extra), which gives the real compiler: what fits into memory, which collectives there are.
    Raises `Fault` where it is missing, and for a name that it does not know.
    """
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
            f"no TPU topology {name!r} to compile for ({why}); install jaxpost[tpu], and name one like v5e:2x4"
        ) from error
