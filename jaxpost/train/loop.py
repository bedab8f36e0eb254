# SPDX-License-Identifier: Apache-2.0
"""The one loop."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np

from jaxpost.arrays import Batch, HostBatch, Key, Metrics, Tree
from jaxpost.data.batches.loader import BatchSource
from jaxpost.faults import Fault
from jaxpost.train.state import State
from jaxpost.train.step import Step
from jaxpost.train.waiting import Waiting

Report = Callable[[int, Metrics], None]


@dataclass(frozen=True)
class Hook:
    """Something to do with the state after every so many steps (0: never)."""

    every: int
    act: Callable[[int, State], None]

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0


class Stopped(Exception):
    """The run was asked to stop, has saved, and can go on from where it is."""

    def __init__(self, step: int, signum: int):
        super().__init__(f"stopped at step {step} by {signal.Signals(signum).name}")
        self.step, self.code = step, 128 + signum


class StopSignals:
    """Notes SIGTERM and SIGINT instead of dying of them, while the loop runs. A second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, step: int) -> int | None:
        """The signal that any process received: all of them must leave the loop at the same step. Asking around
        makes the host wait, so several processes do it every tenth step only."""
        if jax.process_count() == 1:
            return self.received
        if step % 10:
            return None
        from jax.experimental import multihost_utils

        return int(multihost_utils.process_allgather(np.array(self.received or 0)).max()) or None


def fit(
    step: Step,
    state: State,
    frozen: Tree,
    source: BatchSource,
    key: Key,
    *,
    steps: int,
    place: Callable[[HostBatch], Batch],
    report: Report,
    hooks: Sequence[Hook] = (),
    save: Callable[[int, State], None],
    waiting: Waiting | None = None,
) -> State:
    """Steps until there have been `steps` (or the source ends), reporting each step's metrics one step late (or before
    a hook acts): fetching them would make the device wait for the host, and by then they are there.

    `place` puts this process's rows on the devices, `waiting` measures how long the source takes. On SIGTERM or SIGINT
    it saves and raises `Stopped`.
    """
    begun = number = int(state.step)
    waiting = waiting or Waiting()
    unsaid: tuple[int, Metrics] | None = None
    with StopSignals() as signals:
        while number < steps:
            try:
                batch = place(waiting.next(source, state))
            except StopIteration:
                steps = number
                break
            except Fault:  # of the data: what was learned up to here is not its fault
                if unsaid is not None:
                    report(*unsaid)
                if number > begun and jax.process_count() == 1:  # other processes would not join in saving
                    save(number, state)
                raise
            state, metrics = step(state, frozen, batch, key)
            number += 1
            if unsaid is not None:
                report(*unsaid)
            unsaid = number, metrics
            due = [hook for hook in hooks if hook.due(number)]
            if due:  # what they save must not be ahead of what was reported, and they wait for the device anyway
                report(*unsaid)
                unsaid = None
            for hook in due:
                hook.act(number, state)
            if (signum := signals.agreed(number)) is not None and number < steps:
                if unsaid is not None:
                    report(*unsaid)
                save(number, state)
                raise Stopped(number, signum)
    if unsaid is not None:
        report(*unsaid)
    save(number, state)
    return state
