# SPDX-License-Identifier: Apache-2.0
"""Whatever the disk does, what was saved before stays usable."""

import shutil
from pathlib import Path

import pytest

from tests.end_to_end import runs

CONFIG = "nano_pretrain"  # full tuning: its checkpoints are the largest beside the rest of what a run writes


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run that can be spoilt."""
    shutil.copytree(finished(CONFIG).run, tmp_path / "run")
    return tmp_path / "run"


def longer(run, **options):
    """The run, for two steps more than it had."""
    return runs.jaxpost("train", str(run), "--train.steps", "6", *runs.QUIET, **options)


def test_no_room_for_a_checkpoint(run, finished):
    environment = runs.environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    cramped = ["sh", "-c", 'ulimit -f 200 && exec "$@"', "sh", *runs.COMMAND]  # no file above 100 kB
    before = runs.saved(run)
    done = longer(run, command=cramped, env=environment)
    assert done.returncode == 2, done.stderr
    (said,) = done.stderr.strip().splitlines()
    assert f"saving to {run}/checkpoints" in said and "the checkpoint of step 4 is intact" in said
    assert "Make room and start the same command again" in said
    assert runs.saved(run) == before
    again = longer(run)
    assert again.returncode == 0, again.stderr
    assert f"going on from step 4 of {run}" in again.stdout and runs.saved(run)[0] == 6


def test_a_damaged_checkpoint(run):
    newest = run / "checkpoints" / "latest" / "4"
    for file in newest.glob("state/**/d/*"):
        file.write_bytes(b"")
    done = longer(run)
    assert done.returncode == 2, done.stderr
    (said,) = done.stderr.strip().splitlines()
    assert f"checkpoint {newest} cannot be restored" in said and "delete the damaged step" in said
    shutil.rmtree(newest)
    again = longer(run)
    assert again.returncode == 0, again.stderr
    assert f"going on from step 3 of {run}" in again.stdout and runs.saved(run)[0] == 6
