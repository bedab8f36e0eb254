# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest

from jaxpost.data.batches.prefetch import Prefetch


class Counting:
    """A source of numbers that stops, or breaks, behind the last."""

    def __init__(self, last, error=None):
        self.at, self.last, self.error = 0, last, error

    def next(self, state=None):
        if self.at == self.last:
            raise self.error or StopIteration
        self.at += 1
        return {"n": np.array(self.at)}

    def save(self):
        return {"at": self.at}

    def restore(self, saved):
        self.at = saved["at"]


@pytest.mark.parametrize("depth", [1, 4])
def test_the_same_batches_in_the_same_order(depth):
    ahead = Prefetch(Counting(9), depth)
    assert [ahead.next()["n"] for _ in range(9)] == list(range(1, 10))
    for _ in range(2):
        with pytest.raises(StopIteration):
            ahead.next()


def test_the_position_is_that_of_the_batch_handed_out():
    ahead = Prefetch(Counting(9), 4)
    assert ahead.save() == {"at": 0}
    for n in range(1, 4):
        ahead.next()
        assert ahead.save() == {"at": n}
    saved = ahead.save()
    assert [ahead.next()["n"] for _ in range(3)] == [4, 5, 6]
    ahead.restore(saved)
    assert ahead.save() == saved and [ahead.next()["n"] for _ in range(3)] == [4, 5, 6]
    ahead.close()


def test_it_works_ahead_but_not_far():
    source = Counting(100)
    ahead = Prefetch(source, 2)
    ahead.next()
    deadline = time.monotonic() + 30
    while source.at < 4 and time.monotonic() < deadline:  # one handed out, two ready, one in the thread's hands
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.at == 4
    ahead.close()
    assert source.at == 4 and ahead.save() == {"at": 1}


def test_an_error_reaches_the_caller_in_its_place():
    ahead = Prefetch(Counting(2, ValueError("line 3")), 4)
    assert [ahead.next()["n"] for _ in range(2)] == [1, 2]
    with pytest.raises(ValueError, match="line 3"):
        ahead.next()
    assert ahead.save() == {"at": 2}
