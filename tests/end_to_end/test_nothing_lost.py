# SPDX-License-Identifier: Apache-2.0
"""Whatever the disk and the data do, what was learned stays usable."""

import json
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
    environment = runs.environment() | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}  # it reads the cache alone
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


def test_a_bad_row_far_into_the_data_loses_nothing(tmp_path):
    """The run is saved where it met the row, and goes on from there once that is mended."""
    good = [json.dumps({"question": f"What is {i} plus 1?", "answer": str(i + 1)}) for i in range(1400)]
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    write = rows.write_text
    write("\n".join([*good[:700], '{"question": "What?"}', *good[701:]]) + "\n")
    files = (*runs.inputs(tmp_path)["sft_gsm8k_lora"][:-1], str(rows))
    rare = ("--train.eval-every", "0", "--train.save-every", "0", "--train.steps", "42")
    command = ("train", "configs/sft_gsm8k_lora.py:tiny", "--run", str(run), *files, *rare, *runs.QUIET)
    done = runs.jaxpost(*command)
    assert done.returncode == 2, done.stdout
    assert done.stderr == f"jaxpost: {rows}:701: no field 'answer' to be used as 'completion'; known: question\n"
    step = runs.saved(run)[0]
    assert 1 < step == runs.steps(run) < 42
    write("\n".join(good) + "\n")
    again = runs.jaxpost(*command)
    assert again.returncode == 0, again.stderr
    assert f"going on from step {step} of {run}" in again.stdout and runs.saved(run)[0] == 42
