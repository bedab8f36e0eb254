# SPDX-License-Identifier: Apache-2.0
"""The loop: who is called when, and how it stops."""

import functools
import os
import signal

import jax
import numpy as np
import pytest

from jaxpost.faults import Fault
from jaxpost.train import loop
from jaxpost.train.state import State

FROZEN, KEY = {"base": np.zeros(3)}, jax.random.key(0)


class Counting:
    """Batches 1, 2, ...; at some of them something happens first."""

    def __init__(self, last=1000, at=None):
        self.position, self.last, self.at, self.seen = 0, last, at or {}, []

    def next(self, state=None):
        if self.position == self.last:
            raise StopIteration
        self.position += 1
        self.seen.append(int(state.step))
        self.at.get(self.position, lambda: None)()
        return {"n": np.array(self.position)}

    def save(self):
        return {"at": self.position}

    def restore(self, saved):
        self.position = saved["at"]


class Diary:
    """What the loop did, in order."""

    def __init__(self, source, hooks=()):
        self.source, self.events = source, []
        self.hooks = [loop.Hook(every, functools.partial(self.hook, name)) for name, every in hooks]

    def step(self, state, frozen, batch, key):
        assert frozen is FROZEN and key is KEY
        self.events.append(f"step {int(state.step) + 1} on {int(batch['n'])}")
        return state.replace(step=state.step + 1), {"n": batch["n"]}

    def hook(self, name, step, state):
        assert int(state.step) == step
        self.events.append(f"{name} {step}")

    def report(self, step, metrics):
        self.events.append(f"report {step} of {int(metrics['n'])}")

    def save(self, step, state):
        assert int(state.step) == step
        self.events.append(f"save {step} at {self.source.save()['at']}")

    def fit(self, steps, start=0):
        state = State(np.int32(start), {}, {})
        return loop.fit(
            self.step,
            state,
            FROZEN,
            self.source,
            KEY,
            steps=steps,
            place=lambda batch: batch,
            report=self.report,
            hooks=self.hooks,
            save=self.save,
        )

    def of(self, kind):
        return [event for event in self.events if event.startswith(kind)]


def kill(*numbers):
    def act():
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def test_the_order_of_things():
    diary = Diary(Counting())
    assert int(diary.fit(3).step) == 3
    assert diary.events == [
        "step 1 on 1",
        "step 2 on 2",
        "report 1 of 1",
        "step 3 on 3",
        "report 2 of 2",
        "report 3 of 3",
        "save 3 at 3",
    ]
    assert diary.source.seen == [0, 1, 2], "a source sees the state as it is"


def test_hooks_act_when_due_and_know_what_was_reported():
    diary = Diary(Counting(), hooks=[("evaluate", 2), ("keep", 3), ("never", 0)])
    diary.fit(7)
    assert diary.of("evaluate") == ["evaluate 2", "evaluate 4", "evaluate 6"] and diary.of("keep") == [
        "keep 3",
        "keep 6",
    ]
    assert not diary.of("never")
    assert [event.split()[1] for event in diary.of("report")] == list("1234567"), "each once, in order"
    for hook in diary.of("evaluate") + diary.of("keep"):
        before = diary.events[: diary.events.index(hook)]
        done = [event.split()[1] for event in before if event.startswith("step")]
        assert done[-1] == hook.split()[1] and f"report {done[-1]} of {done[-1]}" in before
    assert diary.events.index("evaluate 6") < diary.events.index("keep 6"), "in the order they were given"


@pytest.mark.parametrize("start, steps", [(5, 5), (6, 5), (0, 0)])
def test_nothing_left_to_do(start, steps):
    diary = Diary(Counting())
    assert int(diary.fit(steps, start).step) == start
    assert diary.events == [f"save {start} at 0"] and diary.source.position == 0


def test_steps_are_counted_from_the_state():
    diary = Diary(Counting(), hooks=[("keep", 4)])
    diary.fit(6, start=3)
    assert diary.of("step") == ["step 4 on 1", "step 5 on 2", "step 6 on 3"] and diary.of("keep") == ["keep 4"]


@pytest.mark.parametrize("last", [0, 3])
def test_a_source_that_ends_ends_the_run(last):
    diary = Diary(Counting(last))
    assert int(diary.fit(10).step) == last
    assert len(diary.of("report")) == last and diary.events[-1] == f"save {last} at {last}"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(number, code):
    """The step under way is finished, reported and saved; handlers are as they were afterwards."""
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    diary = Diary(Counting(at={3: kill(number)}), hooks=[("keep", 3)])
    with pytest.raises(loop.Stopped, match=f"stopped at step 3 by {signal.Signals(number).name}") as caught:
        diary.fit(10)
    assert (caught.value.step, caught.value.code) == (3, code)
    assert diary.of("step")[-1] == "step 3 on 3" and diary.source.position == 3
    assert [event.split()[1] for event in diary.of("report")] == list("123")
    assert diary.events[-1] == "save 3 at 3"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_between_hooks_loses_no_metrics():
    diary = Diary(Counting(at={2: kill(signal.SIGTERM)}))
    with pytest.raises(loop.Stopped):
        diary.fit(10)
    assert diary.events[-2:] == ["report 2 of 2", "save 2 at 2"]


@pytest.mark.parametrize(
    "numbers, error",
    [
        ((signal.SIGINT, signal.SIGINT), KeyboardInterrupt),
        ((signal.SIGTERM, signal.SIGINT, signal.SIGINT), KeyboardInterrupt),
        ((signal.SIGTERM, signal.SIGINT), loop.Stopped),
        ((signal.SIGTERM, signal.SIGTERM), loop.Stopped),
        ((signal.SIGINT, signal.SIGTERM), loop.Stopped),
    ],
)
def test_only_a_second_interrupt_interrupts(numbers, error):
    before = signal.getsignal(signal.SIGINT)
    diary = Diary(Counting(at={3: kill(*numbers)}))
    with pytest.raises(error):
        diary.fit(10)
    assert len(diary.of("step")) == (2 if error is KeyboardInterrupt else 3)
    assert len(diary.of("save")) == (0 if error is KeyboardInterrupt else 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_during_the_last_step_finishes_the_run():
    diary = Diary(Counting(at={3: kill(signal.SIGTERM)}))
    assert int(diary.fit(3).step) == 3
    assert diary.events[-2:] == ["report 3 of 3", "save 3 at 3"]


def test_a_signal_when_the_source_has_ended_finishes_the_run():
    def end():
        kill(signal.SIGTERM)()
        raise StopIteration

    diary = Diary(Counting(at={4: end}))
    assert int(diary.fit(10).step) == 3 and diary.events[-2:] == ["report 3 of 3", "save 3 at 4"]


@pytest.mark.parametrize("error", [Fault("data.jsonl:4: no field 'text'"), RuntimeError("broken")])
def test_an_error_in_the_source_comes_through(error):
    before = signal.getsignal(signal.SIGTERM)

    def fail():
        raise error

    diary = Diary(Counting(at={4: fail}), hooks=[("keep", 2)])
    with pytest.raises(type(error)) as caught:
        diary.fit(10)
    assert caught.value is error and signal.getsignal(signal.SIGTERM) is before
    assert diary.of("keep") == ["keep 2"]
    if isinstance(error, Fault):  # of the data: what was learned before it is kept
        assert diary.events[-2:] == ["report 3 of 3", "save 3 at 4"]
    else:  # of ours: who knows what the state is worth
        assert not diary.of("save")


def test_a_fault_before_anything_was_learned_saves_nothing():
    def fail():
        raise Fault("data.jsonl:1: no field 'text'")

    diary = Diary(Counting(at={1: fail}))
    with pytest.raises(Fault):
        diary.fit(10, start=5)
    assert diary.events == []


@pytest.mark.parametrize("every, due", [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (7, [])])
def test_hooks_know_when_they_are_due(every, due):
    hook = loop.Hook(every, lambda step, state: None)
    assert [step for step in range(1, 7) if hook.due(step)] == due
