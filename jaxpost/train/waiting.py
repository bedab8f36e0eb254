# SPDX-License-Identifier: Apache-2.0
"""How long training waits for its data."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from jaxpost.arrays import HostBatch
from jaxpost.data.batches.loader import BatchSource

WINDOW = 50  # steps over which the share is taken


class Waiting:
    """Asks a source for batches and notes how long each took, beside all the time from one batch to the next.

    The host runs ahead of the device, so the share is the most that the device can have stood idle for want of data,
    not what it did. The first batch, behind which no step runs, is not counted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # seconds waited, of seconds in all
        self._last: float | None = None

    def next(self, source: BatchSource, state: Any) -> HostBatch:
        """The source's next batch."""
        asked = self._clock()
        batch = source.next(state)
        came = self._clock()
        if self._last is not None:
            self._recent.append((came - asked, came - self._last))
        self._last = came
        return batch

    @property
    def share(self) -> float | None:
        """Of the wall time of the last steps; None until there were two batches."""
        waited, wall = (sum(times) for times in zip(*self._recent, strict=True)) if self._recent else (0.0, 0.0)
        return waited / max(wall, 1e-9) if self._recent else None
