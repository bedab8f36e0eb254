# SPDX-License-Identifier: Apache-2.0
"""The share of time that a run waits for data: of a slow source nearly all, of a slow step nearly none."""

import json

import jax
import numpy as np
import pytest

from jaxpost.train import loop
from jaxpost.train.state import State
from jaxpost.train.waiting import WINDOW, Waiting


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Slow:
    """A source whose batches take so long."""

    def __init__(self, seconds, sleep):
        self.seconds, self.sleep = seconds, sleep

    def next(self, state=None):
        self.sleep(self.seconds() if callable(self.seconds) else self.seconds)
        return {"n": np.zeros(())}

    def save(self):
        return json.loads("{}")

    def restore(self, saved):
        pass


def test_the_first_batch_is_not_counted():
    clock = Clock()

    def sleep(seconds):
        clock.now += seconds

    waiting, source = Waiting(clock), Slow(3.0, sleep)
    assert waiting.share is None
    waiting.next(source, None)
    assert waiting.share is None
    clock.now += 1.0  # a step
    waiting.next(source, None)
    assert waiting.share == pytest.approx(0.75)


def test_the_share_is_that_of_the_last_steps():
    clock = Clock()
    seconds = iter([0.0] * 100 + [1.0] * (WINDOW + 1))

    def sleep(seconds):
        clock.now += seconds

    waiting, source, seen = Waiting(clock), Slow(lambda: next(seconds), sleep), []
    for _ in range(101 + WINDOW):
        waiting.next(source, None)
        seen.append(waiting.share)
        clock.now += 1.0
    assert seen[100 - 1] == 0 and 0 < seen[100 + 10] < 0.5 and seen[-1] == pytest.approx(0.5)


@pytest.mark.parametrize(("data", "step", "share"), [(3.0, 0.0, 1.0), (3.0, 1.0, 0.75), (0.0, 1.0, 0.0)])
def test_the_loop_measures_it(data, step, share):
    """A slow source shows, a slow step does not."""
    clock = Clock()

    def sleep(seconds):
        clock.now += seconds

    def slow(state, frozen, batch, key):
        sleep(step)
        return state.replace(step=state.step + 1), {}

    waiting, shares = Waiting(clock), []
    loop.fit(
        slow,
        State(np.int32(0), {}, {}),
        {},
        Slow(data, sleep),
        jax.random.key(0),
        steps=6,
        place=lambda batch: batch,
        report=lambda number, metrics: shares.append(waiting.share),
        save=lambda number, state: None,
        waiting=waiting,
    )
    assert len(shares) == 6 and shares[-1] == pytest.approx(share)
