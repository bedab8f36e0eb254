# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are whole or absent, the same to the bit, and say in one sentence why they cannot be written or read."""

import gc
import json
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost import delta
from jaxpost.faults import Fault
from jaxpost.train.checkpoint import Checkpoints
from jaxpost.train.loop import Stopped
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.state import State
from tests.train.tiny import CUBE, RIBBON, assembled, copied, identical, mesh_of


def plain(value, extra=None):
    """A state of a few kilobytes whose every number says which one it is."""
    w = jnp.arange(1000, dtype=jnp.float32) + value
    return State(jnp.int32(value), {"w": w, "hole": None}, {"m": w.astype(jnp.bfloat16)}, extra)


def abstract(state, mesh=None):
    place = NamedSharding(mesh or mesh_of(None), P())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state)


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _any(rng, leaf):
    return (99 * rng.normal(size=leaf.shape)).astype(leaf.dtype)


@pytest.mark.parametrize("kind", [delta.Full(), delta.Lora(rank=2)], ids=["full", "lora"])
def test_a_state_comes_back_to_the_bit_on_any_mesh(tmp_path, kind):
    """Written from one mesh, read onto others. The trainable half of LoRA has holes where its scales were."""
    meshes = {shape: assembled(shape, kind, Optimiser("adamw")) for shape in (CUBE, RIBBON, None)}
    rng, form = np.random.default_rng(0), meshes[CUBE].state
    state = jax.tree.map(lambda leaf: jax.device_put(_any(rng, leaf), leaf.sharding), form)
    wanted, position = copied(state), {"lanes": {"0": {"next": 5, "waiting": [3, 4]}}, "step": 7}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, position)
    for assembly in meshes.values():
        with Checkpoints(tmp_path) as checkpoints:
            saved = checkpoints.restore(assembly.state)
        assert saved.step == 7 and saved.sources == [position]
        assert identical(saved.state, wanted)
        for leaf, asked in zip(jax.tree.leaves(saved.state), jax.tree.leaves(assembly.state), strict=True):
            assert leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim)


def test_what_is_saved_is_what_was_there_when_save_returned(tmp_path):
    """Though it is written in the background, and the next steps reuse (donate) the very buffers."""
    state = {"w": jnp.arange(1_000_000, dtype=jnp.float32), "v": jnp.zeros((500, 1000))}
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    state = advance(state)
    wanted = copied(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(30):
            state = advance(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path) as checkpoints:
        assert identical(checkpoints.restore(abstract(wanted)).state, wanted)


def test_the_latest_two_and_the_best_one_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step() is None
        for step in (1, 2, 3):
            checkpoints.save(step, plain(step), {"at": step})
        for step in (1, 2):
            checkpoints.save(step, plain(10 * step), {"at": step}, best=True)
        checkpoints.wait()
        assert checkpoints.step() == 3
        assert steps(tmp_path / "latest") == [2, 3] and steps(tmp_path / "best") == [2]
    with Checkpoints(tmp_path) as checkpoints:
        latest, best = checkpoints.restore(abstract(plain(0))), checkpoints.restore(abstract(plain(0)), best=True)
    assert (latest.step, latest.sources) == (3, [{"at": 3}]) and identical(latest.state, plain(3))
    assert (best.step, best.sources) == (2, [{"at": 2}]) and identical(best.state, plain(20))


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, plain(4), {"at": 4})
        checkpoints.save(4, plain(5), {"at": 5})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, plain(6), {"at": 6})
        saved = checkpoints.restore(abstract(plain(0)))
    assert saved.sources == [{"at": 4}] and identical(saved.state, plain(4))


@pytest.mark.parametrize("best", [False, True])
def test_nothing_to_restore(tmp_path, best):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Fault, match="has no checkpoint; train first, or name another run"):
            checkpoints.restore(abstract(plain(0)), best)


def test_a_place_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(Fault, match="cannot write to .*run.*; choose another run directory"):
        Checkpoints(tmp_path / "run")


# --- damage


@contextmanager
def settled():
    """What a failed read leaves to the garbage collector complains when collected; here, and not in a later test."""
    try:
        yield
    finally:
        gc.collect()


unread = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def written(directory):
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, plain(1), {"at": 1})
        checkpoints.save(2, plain(2), {"at": 2})
    return directory / "latest" / "2"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def arrays(step):
    """The file that holds the arrays' numbers."""
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGE = {
    "arrays cut": lambda step: cut(arrays(step)),
    "arrays gone": lambda step: arrays(step).unlink(),
    "arrays overwritten": lambda step: arrays(step).write_bytes(b"\x5a" * arrays(step).stat().st_size),
    "index cut": lambda step: cut(step / "state" / "manifest.ocdbt"),
    "index gone": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "names cut": lambda step: cut(step / "state" / "_METADATA"),
    "position cut": lambda step: cut(step / "data" / "metadata"),
    "position gone": lambda step: shutil.rmtree(step / "data"),
    "state gone": lambda step: shutil.rmtree(step / "state"),
    "all gone": lambda step: [shutil.rmtree(step), step.mkdir()],
}


@unread
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_said_and_the_one_before_still_restores(tmp_path, kind):
    newest = written(tmp_path)
    DAMAGE[kind](newest)
    with settled(), Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Fault) as caught:
            checkpoints.restore(abstract(plain(0)))
    message = str(caught.value)
    assert str(newest) in message and "cannot be restored" in message and "delete the damaged step" in message
    assert "\n" not in message and len(message) < 1000
    shutil.rmtree(newest)  # as it says
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.restore(abstract(plain(0)))
    assert saved.sources == [{"at": 1}] and identical(saved.state, plain(1))


MISFITS = {
    "another shape": lambda state: state.replace(trainable=state.trainable | {"w": jnp.zeros(999)}),
    "one more": lambda state: state.replace(trainable=state.trainable | {"v": jnp.zeros(3)}),
    "one less": lambda state: state.replace(opt_state={}),
    "a hole filled": lambda state: state.replace(trainable=state.trainable | {"hole": jnp.zeros(3)}),
}


@unread
@pytest.mark.parametrize("kind", MISFITS)
def test_a_state_of_another_form_is_refused(tmp_path, kind):
    """As when the config has changed under a run: never a state that only half fits."""
    written(tmp_path)
    with settled(), Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Fault, match="cannot be restored.*config has changed"):
            checkpoints.restore(abstract(MISFITS[kind](plain(0))))
        assert identical(checkpoints.restore(abstract(plain(0))).state, plain(2))


# --- writing that fails


@contextmanager
def full_disk():
    """No file may grow beyond a few bytes: what a full disk looks like to a program, without being root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def incompressible(value):
    return {"w": jax.random.normal(jax.random.key(value), (100, 1000))}


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path, capfd):
    with pytest.raises(Fault) as caught, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, incompressible(1), {"at": 1})
        checkpoints.wait()
        with full_disk():
            checkpoints.save(2, incompressible(2), {"at": 2})
            checkpoints.wait()
    message = str(caught.value)
    assert f"saving to {tmp_path} failed" in message and "the checkpoint of step 1 is intact" in message
    assert "too large" in message, "the cause itself, which stands at the end of a long line"
    assert "Traceback" not in capfd.readouterr().err
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.restore(abstract(incompressible(0)))
        assert saved.step == 1 and saved.sources == [{"at": 1}] and identical(saved.state, incompressible(1))
        checkpoints.save(2, incompressible(2), {"at": 2})  # there is room again
    with Checkpoints(tmp_path) as checkpoints:
        assert identical(checkpoints.restore(abstract(incompressible(0))).state, incompressible(2))


def test_a_first_save_that_fails_says_that_there_is_none(tmp_path):
    with pytest.raises(Fault, match="no earlier checkpoint exists"), full_disk():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, incompressible(1), {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step() is None


def test_the_next_save_says_that_the_last_one_failed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with full_disk():
            checkpoints.save(1, incompressible(1), {})
            with pytest.raises(Fault, match="at step 2 failed"):
                checkpoints.save(2, incompressible(2), {})


@pytest.mark.parametrize("leaving", [Stopped(2, signal.SIGTERM), KeyboardInterrupt(), None])
def test_nobody_leaves_in_the_belief_to_have_saved(tmp_path, leaving):
    """The last save of a run that is stopped runs in the background too. If it fails, that is what is said."""
    with pytest.raises(Fault, match="the checkpoint of step 1 is intact"), full_disk():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"w": jnp.zeros(3)}, {}, best=False)
            checkpoints.save(2, incompressible(2), {})
            if leaving is not None:
                raise leaving
    assert steps(tmp_path / "latest") == [1]


def test_leaving_by_an_exception_finishes_what_was_started(tmp_path):
    with pytest.raises(Stopped), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, incompressible(2), {"at": 2})
        raise Stopped(2, signal.SIGTERM)
    with Checkpoints(tmp_path) as checkpoints:
        assert identical(checkpoints.restore(abstract(incompressible(0))).state, incompressible(2))


KILLED = """
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp
from jaxpost.train.checkpoint import Checkpoints

directory, event, part = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def watch(name, args):
    if name == event and args and part in str(args[0]):
        os.kill(os.getpid(), signal.SIGKILL)

with Checkpoints(directory) as checkpoints:
    checkpoints.save(1, {"w": jnp.full(1000, 1.0)}, {"at": 1})
    checkpoints.wait()
    sys.addaudithook(watch)
    checkpoints.save(2, {"w": jnp.full(1000, 2.0)}, {"at": 2})
"""


@pytest.mark.parametrize("event, part", [("open", "2.orbax-checkpoint-tmp"), ("os.rename", "2.orbax-checkpoint-tmp")])
def test_killed_while_saving(tmp_path, event, part):
    """At the first file of the new checkpoint, and at the moment when it is given its name."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), event, part],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(path.name.startswith("2.") for path in (tmp_path / "latest").iterdir()), "half of a checkpoint is there"
    one = {"w": jnp.full(1000, 1.0)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step() == 1
        saved = checkpoints.restore(abstract(one))
        assert saved.sources == [{"at": 1}] and identical(saved.state, one)
        checkpoints.save(2, {"w": jnp.full(1000, 3.0)}, {"at": 3})
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.restore(abstract(one))
    assert saved.step == 2 and saved.sources == [{"at": 3}] and float(saved.state["w"][0]) == 3.0


def test_a_position_is_kept_as_it_was(tmp_path):
    position = {"of": {"seed": None, "batch": 4}, "text": "ä\n", "deep": [[1, 2], {}], "big": 2**60, "share": 0.1}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(1)}, position)
        assert json.dumps(checkpoints.restore(abstract({"w": jnp.zeros(1)})).sources) == json.dumps([position])
