# SPDX-License-Identifier: Apache-2.0
"""The next batches made ready by a thread while the device works on this one."""

import queue
import threading
from typing import Any

from jaxpost.data.batches.loader import Batch, BatchSource


class Prefetch:
    """Up to `depth` batches of a source made ahead. What `save` gives is the position after the last batch handed out.

    For sources that do not look at the training state: a rollout made ahead would be one of older parameters.
    """

    def __init__(self, source: BatchSource, depth: int = 2):
        self._source, self._depth = source, depth
        self._saved = source.save()
        self._thread: threading.Thread | None = None

    def next(self, state: Any = None) -> Batch:
        """The source's next batch, or whatever it raised in its place (then again at every further call)."""
        if self._thread is None:
            self._ready: queue.Queue[tuple[Any, dict[str, Any] | None]] = queue.Queue(self._depth)
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._work, args=(self._ready, self._stop), daemon=True)
            self._thread.start()
        made, saved = self._ready.get()
        if saved is None:
            self.close()
            raise made
        self._saved = saved
        return made

    def _work(self, ready: "queue.Queue[Any]", stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                item = self._source.next(), self._source.save()
            except BaseException as error:  # the caller's to handle, StopIteration too
                item = error, None
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    pass
            if item[1] is None:
                return

    def save(self) -> dict[str, Any]:
        return self._saved

    def restore(self, saved: dict[str, Any]) -> None:
        self.close()
        self._source.restore(saved)
        self._saved = saved

    def close(self) -> None:
        """Ends the thread; batches made ahead are forgotten. The source must then be restored before it is used."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
