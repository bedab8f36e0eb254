# SPDX-License-Identifier: Apache-2.0
"""A stopped run and an unbroken one are the same run, with everything real: data, prefetching, checkpoints, signals."""

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
from jaxpost.data.batches.loader import Loader, join
from jaxpost.data.batches.prefetch import Prefetch
from jaxpost.data.tokenizers import Tokens, Virtual
from jaxpost.faults import Fault
from jaxpost.recipes import run, sft
from jaxpost.train import loop
from jaxpost.train.checkpoint import Checkpoints
from jaxpost.train.optimisers import Optimiser
from tests.train.tiny import CONFIG, CUBE, assembled, config, copied, identical, started


class Numbers:
    """A tokenizer for rows that are tokens already."""

    vocab_size, bos, eos, pad = CONFIG.vocab, None, 2, 0
    ends, template, continues, virtual = (2,), None, False, Virtual()

    def encode(self, text):
        raise NotImplementedError

    encode_offsets = encode_offsets_batch = decode = piece = save = encode


def rows(count=40):
    rng = np.random.default_rng(0)
    made = []
    for n in rng.integers(4, 14, count):
        trained = rng.random(n) < 0.5
        trained[-1] = True
        made.append(Tokens(rng.integers(1, CONFIG.vocab, n).astype(np.int32), trained))
    return made


class Breaking(Loader):
    """Bad data in the batch of a step."""

    breaks_at: int | None = None
    error: Exception

    def next(self, state=None):
        if self.save()["step"] + 1 == self.breaks_at:
            raise self.error
        return super().next(state)


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

    def __init__(self, directory: Path, shape=None, stop_at=None, breaks_at=None, error=None, epochs=None):
        self.directory, self.metrics, self.kept = directory, {}, {}
        self.assembly, self.step = program(shape)
        loader = Breaking(rows(), Numbers(), 8, 24, "pack", seed=1, epochs=epochs)
        loader.breaks_at, loader.error = breaks_at, error
        self.source, self.stop_at = Prefetch(loader), stop_at

    def place(self, batch):
        self.drawn += 1
        if self.drawn == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
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


def test_a_fault_in_the_data_loses_nothing(tmp_path):
    """The data of step 6 is bad. Mended, the run goes on from step 5 to the same end."""
    wanted = Run(tmp_path / "whole").go()
    broken = Run(tmp_path / "broken", breaks_at=6, error=Fault("data.jsonl:4: no field 'text'"))
    with pytest.raises(Fault, match="no field 'text'"):
        broken.go()
    assert sorted(broken.kept) == [4, 5] and sorted(broken.metrics) == [1, 2, 3, 4, 5]
    fixed = Run(tmp_path / "broken")
    assert identical(fixed.go(), wanted) and sorted(fixed.metrics) == [6, 7, 8, 9]


def test_a_bug_leaves_the_last_checkpoint(tmp_path):
    """What no one foresaw loses the steps since the last save, and those only."""
    wanted = Run(tmp_path / "whole").go()
    broken = Run(tmp_path / "broken", breaks_at=7, error=RuntimeError("of ours"))
    with pytest.raises(RuntimeError, match="of ours"):
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
