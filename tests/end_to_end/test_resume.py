# SPDX-License-Identifier: Apache-2.0
"""Every config trains through the real entry point; those of every kind die, and go on as if nothing had happened."""

import json
import re
import signal

import pytest

from tests.conftest import ROOT
from tests.end_to_end import runs


def test_every_config_is_covered(tmp_path):
    assert len(runs.CONFIGS) == 10 and set(runs.inputs(tmp_path)) == set(runs.CONFIGS)
    assert all("def tiny()" in (ROOT / "configs" / f"{name}.py").read_text() for name in runs.CONFIGS)


@pytest.mark.parametrize("config", runs.CONFIGS)
def test_trains(config, finished):
    done = finished(config)
    assert done.code == 0, done.complained
    assert done.complained == ""
    assert runs.saved(done.run)[0] == 4
    classifies = config.startswith("classify")
    shown = "classes.json" if classifies else "generations.json"
    for name in ("config.json", "metrics.jsonl", "run.json", shown, "report.html"):
        assert (done.run / name).stat().st_size > 0
    assert list((done.run / "tensorboard").iterdir())
    assert "step 4/4 (100%)" in done.said
    assert ("held out: accuracy" if classifies else f"generate {done.run}") in done.said


# One of each kind of what is fed, and of what is remembered besides: the others are these with less.
DIE = (
    "bitdelta_nano",
    "classify_nano_prefix",
    "dpo_nano",
    "flan_nano_lora",
    "methods_nano",
    "nano_pretrain",
    "ppo_nano",
)


@pytest.mark.parametrize("config", DIE)
def test_killed_and_resumed_equals_uninterrupted(config, finished, flags, tmp_path):
    whole = finished(config).run
    for attempt in range(3):  # on a busy machine a run can be over before anybody sees that it has begun
        run = tmp_path / f"run{attempt}"
        command = ("train", f"configs/{config}.py:tiny", "--run", str(run), *flags(config), *runs.QUIET)
        code, said = runs.stopped(*command, run=run, signal=signal.SIGKILL, after=2, keeps=1)
        if code == -signal.SIGKILL and runs.kept(run) < 4:
            break
    assert code == -signal.SIGKILL, said
    assert 1 <= runs.kept(run) < 4, "it was not killed in the middle"
    resumed = runs.jaxpost(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(rf"going on from step [123] of {run}$", resumed.stdout, re.MULTILINE)
    assert runs.saved(run) == runs.saved(whole)
    assert losses(run) == losses(whole)


NAMES = ("loss", "reward", "eval_loss", "eval_reward")


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name, line[name]) for line in lines for name in NAMES if name in line]


def test_stopped_by_a_scheduler_saves_and_says_so(finished, flags, tmp_path):
    run, config = tmp_path / "run", "sft_gsm8k_lora"
    never = ("--train.save-every", "0", "--train.eval-every", "0")
    command = ("train", f"configs/{config}.py:tiny", "--run", str(run), *flags(config), *runs.QUIET, *never)
    code, said = runs.stopped(*command, "--train.steps", "100000", run=run, signal=signal.SIGTERM, after=2)
    assert code == 143
    step = runs.saved(run)[0]
    assert 2 <= step == runs.steps(run)
    assert f"stopped at step {step} by SIGTERM; start the same command again" in said and "Traceback" not in said
    resumed = runs.jaxpost(*command, "--train.steps", str(step + 1))
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on from step {step} of" in resumed.stdout and runs.saved(run)[0] == step + 1


def test_what_was_cut_is_counted(finished):
    done = finished("sft_gsm8k_lora")
    facts = json.loads((done.run / "run.json").read_text())
    assert facts["examples truncated"] > 0 and facts["examples read"] > facts["examples truncated"]
    assert f"longer than seq_len 64: {facts['examples truncated']} truncated to it" in " ".join(done.said.split())
