# SPDX-License-Identifier: Apache-2.0
"""Arrays that rest in the host's memory, and how they come to the device and go back inside a program."""

from typing import Any

import jax

from jaxpost.arrays import Tree

HOST = "pinned_host"
"""The kind of memory that a device of any platform (CPU, GPU, TPU) copies from and to without the host's help."""


def on_host(place: Any) -> Any:
    """The same place in the memory of the hosts that its devices belong to."""
    return place.with_memory_kind(HOST)


def fetched(tree: Tree) -> Tree:
    """The arrays on the devices, where they can be computed with; what is there already stays."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), tree)


def returned(tree: Tree) -> Tree:
    """The arrays in the hosts' memory."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Host), tree)
