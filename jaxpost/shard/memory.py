# SPDX-License-Identifier: Apache-2.0
"""What devices have left."""

from collections.abc import Iterable
from typing import Any


def free(devices: Iterable[Any]) -> int | None:
    """Bytes of memory that are free on the fullest of these devices of this process, where all of them tell."""
    stats = [device.memory_stats() or {} for device in devices]
    if not stats or not all("bytes_limit" in each for each in stats):
        return None
    return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
