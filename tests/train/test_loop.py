# SPDX-License-Identifier: Apache-2.0
"""The loop: who is called when, how it stops, and that a stopped run and an unbroken one are the same run."""

import functools
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta
from jaxpost.data.loader import Loader, join
from jaxpost.data.prefetch import Prefetch
from jaxpost.data.tokenizers import Tokens
from jaxpost.faults import Fault
from jaxpost.recipes import run, sft
from jaxpost.train import loop
from jaxpost.train.checkpoint import Checkpoints
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.state import State
from tests.train.tiny import CONFIG, CUBE, assembled, config, copied, identical, started

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
    assert diary.of("keep") == ["keep 2"] and not diary.of("save"), "what was kept stays, and nothing is made up"


@pytest.mark.parametrize("every, due", [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (7, [])])
def test_hooks_know_when_they_are_due(every, due):
    hook = loop.Hook(every, lambda step, state: None)
    assert [step for step in range(1, 7) if hook.due(step)] == due


# --- with everything real


class Numbers:
    """A tokenizer for rows that are tokens already."""

    vocab_size, bos, eos, pad = CONFIG.vocab, None, 2, 0

    def encode(self, text):
        raise NotImplementedError

    encode_offsets = decode = piece = save = encode


def rows(count=40):
    rng = np.random.default_rng(0)
    made = []
    for n in rng.integers(4, 14, count):
        trained = rng.random(n) < 0.5
        trained[-1] = True
        made.append(Tokens(rng.integers(1, CONFIG.vocab, n).astype(np.int32), trained))
    return made


SETTINGS = dict(
    delta=delta.Lora(rank=2, dropout=0.3),
    loss=sft.Loss(neftune=5.0, chunk=32),
    batches=sft.Batches(rows=8, seq_len=24),
    optim=Optimiser(lr=1e-2, warmup=2, weight_decay=0.1),
    train=sft.Training(steps=9, microbatches=2),
)


@functools.cache
def program(shape):
    settings = config(**SETTINGS)
    assembly = assembled(shape, settings.delta, settings.optim, settings.train.steps)
    with jax.set_mesh(assembly.mesh):
        step = sft.programs(settings, assembly)["step"]
        return assembly, step.call.lower(*step.arguments).compile()


class Run:
    """A process's life: from the run's directory on, until it is over or killed."""

    def __init__(self, directory: Path, shape=None, stop_at=None, source_fails_at=None, epochs=None):
        self.directory, self.metrics, self.kept = directory, {}, {}
        self.assembly, self.step = program(shape)
        loader = Loader(rows(), Numbers(), 8, 24, "pack", seed=1, epochs=epochs)
        self.source = Prefetch(loader)
        self.stop_at, self.source_fails_at = stop_at, source_fails_at

    def place(self, batch):
        self.drawn += 1
        if self.drawn == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.drawn == self.source_fails_at:
            raise Fault("data.jsonl:4: no field 'text'")
        return run.place(batch, self.assembly.mesh)

    def report(self, step, metrics):
        assert step not in self.metrics
        self.metrics[step] = {name: float(value) for name, value in jax.device_get(metrics).items()}

    def go(self, steps=9):
        with jax.set_mesh(self.assembly.mesh), Checkpoints(self.directory) as checkpoints:
            state, frozen = started(self.assembly)
            if checkpoints.step() is not None:
                saved = checkpoints.restore(self.assembly.state)
                state = saved.state
                self.source.restore(join(saved.sources))
            self.drawn = int(state.step)

            def save(step, state):
                self.kept[step] = copied(state)
                checkpoints.save(step, state, self.source.save())

            try:
                return copied(
                    loop.fit(
                        self.step,
                        state,
                        frozen,
                        self.source,
                        jax.device_put(jax.random.key(3), jax.sharding.NamedSharding(self.assembly.mesh, jax.P())),
                        steps=steps,
                        place=self.place,
                        report=self.report,
                        hooks=[loop.Hook(4, save)],
                        save=save,
                    )
                )
            finally:
                self.source.close()


@pytest.mark.parametrize("shape", [None, CUBE], ids=["one device", "eight"])
def test_stopped_and_resumed_is_never_stopped(tmp_path, shape):
    """State and metrics to the bit: dropout, noise, moments, schedule, packing and the order of the data go on."""
    whole = Run(tmp_path / "whole", shape)
    wanted = whole.go()
    first = Run(tmp_path / "cut", shape, stop_at=3)
    with pytest.raises(loop.Stopped) as caught:
        first.go()
    assert caught.value.code == 143 and sorted(first.metrics) == [1, 2, 3]
    second = Run(tmp_path / "cut", shape, stop_at=6)
    with pytest.raises(loop.Stopped):
        second.go()
    third = Run(tmp_path / "cut", shape)
    state = third.go()
    assert identical(state, wanted) and state.step == 9
    assert first.metrics | second.metrics | third.metrics == whole.metrics and sorted(whole.metrics) == list(
        range(1, 10)
    )
    losses = [whole.metrics[step]["loss"] for step in whole.metrics]
    assert len(set(losses)) == 9 and all(np.isfinite(losses))
    assert any(
        np.any(leaf) for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, wanted.trainable, whole.kept[4].trainable))
    )


def test_a_run_goes_on_on_another_mesh(tmp_path):
    """Not to the bit, sums being taken in another order, but to rounding."""
    wanted = Run(tmp_path / "whole").go(6)
    Run(tmp_path / "moved", CUBE).go(4)
    moved = Run(tmp_path / "moved").go(6)
    assert moved.step == wanted.step == 6
    for a, b in zip(jax.tree.leaves(moved.trainable), jax.tree.leaves(wanted.trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-3 * max(1e-3, np.abs(b).max()))


def test_a_fault_in_the_data_leaves_the_last_checkpoint(tmp_path):
    """Step 6 fails; step 4 was kept, and the run goes on from there to the same end."""
    wanted = Run(tmp_path / "whole").go()
    broken = Run(tmp_path / "broken", source_fails_at=6)
    with pytest.raises(Fault, match="no field 'text'"):
        broken.go()
    assert sorted(broken.kept) == [4]
    fixed = Run(tmp_path / "broken")
    assert identical(fixed.go(), wanted) and sorted(fixed.metrics) == [5, 6, 7, 8, 9]


def test_what_a_hook_saves_in_the_background_is_the_state_of_its_step(tmp_path):
    """Training goes on, with the buffers donated, while it is written."""
    unbroken = Run(tmp_path)
    unbroken.go()
    with Checkpoints(tmp_path) as checkpoints, jax.set_mesh(unbroken.assembly.mesh):
        assert checkpoints.step() == 9
        assert sorted(int(path.name) for path in (tmp_path / "latest").iterdir()) == [8, 9]
    shutil.rmtree(tmp_path / "latest" / "9")
    with Checkpoints(tmp_path) as checkpoints, jax.set_mesh(unbroken.assembly.mesh):
        assert identical(copied(checkpoints.restore(unbroken.assembly.state).state), unbroken.kept[8])


def test_a_run_ends_with_its_data(tmp_path):
    short = Run(tmp_path, epochs=1)
    state = short.go(1000)
    count = Loader(rows(), Numbers(), 8, 24, "pack", seed=1, epochs=1).batches()
    assert 0 < state.step == count < 9 and sorted(short.metrics) == list(range(1, count + 1))
    again = Run(tmp_path, epochs=1)
    assert identical(again.go(1000), state) and not again.metrics
