# SPDX-License-Identifier: Apache-2.0
"""What can be done with a run that has trained."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import interop
from jaxpost.kernels.attention import Rows
from jaxpost.models import decoder
from jaxpost.recipes import trained
from tests.end_to_end import runs


@pytest.fixture
def run(finished) -> str:
    return str(finished("flan_nano_lora").run)


def test_generate_writes_completions_and_nothing_else(run):
    done = runs.jaxpost("generate", run, "--prompt", "What is 3 plus 4?", "-", "--max-new", "8", input="Hello\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout and "reading" not in done.stdout and "reading" in done.stderr
    again = runs.jaxpost("generate", run, "--prompt", "What is 3 plus 4?", "Hello", "--max-new", "8")
    assert again.stdout == done.stdout


def test_chat_answers_lines_that_are_piped_in_whatever_their_length(run):
    long = "What is 3 plus 4? " * 300
    lines = f"{long}\nWhat is 3 plus 4?\n/new\nHello\n"
    done = runs.jaxpost("chat", run, "--max-new", "8", "--kv", "int8", input=lines)
    assert done.returncode == 0, done.stderr
    first, *answers = done.stdout.splitlines()
    assert "say it shorter" in first and answers and ">" not in answers[0]


def test_an_export_is_the_same_function_as_the_run(run, tmp_path):
    out = tmp_path / "out"
    done = runs.jaxpost("export", run, str(out), "--to", "hf")
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout and sorted(path.name for path in out.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.model"
    ]  # fmt: skip
    config, merged = interop.load(out)
    tuned = trained.read(run)
    assert config == tuned.model
    tokens = jax.random.randint(jax.random.key(0), (2, 24), 0, config.vocab)
    rows = Rows(jnp.ones((2, 24), jnp.int32), jnp.tile(jnp.arange(24), (2, 1)))
    logits = [np.asarray(decoder.logits(config, w, tokens, rows)) for w in (merged, tuned.weights, tuned.base)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    assert np.abs(logits[0] - logits[2]).max() > 1e-2  # and the run has changed it


def test_eval_tells_held_out_clusters_apart(run):
    done = runs.jaxpost("eval", run, "--examples", "1", "--clusters", "tracking")
    assert done.returncode == 0, done.stderr
    assert "unseen clusters" in done.stdout and "tracking (4)" in done.stdout and "arithmetic" not in done.stdout


def test_a_run_directory_can_be_moved_and_run_again(run, tmp_path):
    """With other wishes for the review, too: what was measured before training is measured again then."""
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    done = runs.jaxpost("train", str(moved), "--review.examples", "0", "--review.generations", "2")
    assert done.returncode == 0, done.stderr
    assert f"going on from step 4 of {moved}" in done.stdout and "step 4/4" not in done.stdout
    assert "measuring the model before training" in done.stdout
    assert runs.saved(moved) == runs.saved(Path(run))
    samples = json.loads((moved / "generations.json").read_text())
    assert len(samples) == 2 and all(sample["before"] for sample in samples)


def test_report_is_written_where_it_says(run):
    done = runs.jaxpost("report", run)
    assert done.returncode == 0 and done.stdout == f"{run}/report.html\n"
    page = Path(done.stdout.strip()).read_text(encoding="utf-8")
    assert "Unseen clusters" in page and "tracking" in page


def test_the_table_fits_a_terminal_of_80_columns_and_no_command_is_broken(run, finished):
    said = finished("flan_nano_lora").said
    table = said[said.index("Before and after") :].split("Scores are in percent")[0]
    assert all(len(line.rstrip()) <= 80 for line in table.splitlines())
    assert "trained tasks, unseen examples " in table and "arithmetic (5)" in table and "in %" in table
    assert "…" not in table
    assert f'generate {run} --prompt "What is 3 plus 4?"\n' in said


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_data_show_marks_what_is_trained_on_any_terminal(encoding):
    environment = runs.environment() | {"LC_ALL": "C", "PYTHONIOENCODING": encoding}
    done = runs.jaxpost("data", "show", "configs/flan_nano_lora.py:tiny", env=environment)
    assert done.returncode == 0, done.stderr
    opened, closed = ("[[", "]]") if encoding == "ascii" else ("⟦", "⟧")
    assert done.stdout.count(opened) == done.stdout.count(closed) == 5
    assert f"</s>{closed}" in done.stdout


def test_an_empty_environment_and_a_closed_terminal_will_do(run):
    program = [sys.executable, "-m", "jaxpost.cli", "generate", run, "--max-new", "4", "--prompt", "Hello"]
    shell = ["sh", "-c", '"$@" <&-', "sh", *program]
    done = subprocess.run(shell, capture_output=True, text=True, env={}, cwd=runs.ROOT, timeout=300)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_whoever_reads_half_of_the_output_gets_no_traceback():
    with subprocess.Popen(
        [*runs.COMMAND, "data", "show", "configs/flan_nano_lora.py:tiny"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=runs.environment() | {"PYTHONUNBUFFERED": "1"},
        cwd=runs.ROOT,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None and process.stderr.read() == ""
        process.wait(timeout=300)


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="needs process groups")
def test_interrupted_while_it_reads_it_leaves_quietly(tmp_path):
    with subprocess.Popen(
        [*runs.COMMAND, "train", "configs/flan_nano_lora.py:tiny", "--run", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=runs.environment(),
        cwd=runs.ROOT,
    ) as process:
        assert process.stdout is not None and "reading" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, complained = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in complained
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_generations_carry_their_task(run):
    (sample,) = json.loads((Path(run) / "generations.json").read_text())
    assert sample["cluster"] in {"arithmetic", "sentiment", "tracking"} and sample["task"] and sample["target"]


def test_classify_tells_a_class_and_how_likely_each_is(finished):
    done = runs.jaxpost("classify", str(finished("classify_nano_prefix").run), "Max lost his dog.")
    assert done.returncode == 0, done.stderr
    name, *shares = done.stdout.strip().splitlines()[-1].split("  ")
    told = {share.split()[0]: float(share.split()[1]) for share in shares}
    assert told.keys() == {"happy", "sad", "angry", "scared"} and max(told, key=told.__getitem__) == name
    assert abs(sum(told.values()) - 100) < 0.5
