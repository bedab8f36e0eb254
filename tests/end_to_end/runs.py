# SPDX-License-Identifier: Apache-2.0
"""jaxpost as its users start it: another process, one device, its own streams and exit code."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxpost.data import nano
from jaxpost.data.tokenizers import SentencePieceTokenizer
from jaxpost.data.tokens import blocks
from jaxpost.recipes.base import BUILT_IN
from tests.conftest import ROOT

COMMAND = [sys.executable, "-m", "jaxpost.cli"]
# These differ from one that is trained here by their data alone; tests/recipes/test_shown_data.py makes their batches.
ALIKE = {"dpo_hh", "grpo_gsm8k", "lm_c4", "reward_hh", "sft_e2e_lora"}
INSIDE = {"kto_nano", "reward_nano", "constitutional_nano", "rlaif_nano"}
"""Configs whose tiny forms run on smaller models, within tests/recipes/test_{preference_runs,pipelines}.py."""
CONFIGS = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - ALIKE - INSIDE)
FROM = {"bitdelta_nano": "flan_nano_full"}
"""Configs that go on from another's run."""
QUIET = ("--review.examples", "0", "--review.generations", "0")
TOKENIZER = str(BUILT_IN["nano"] / "tokenizer.model")


def environment() -> dict[str, str]:
    """A user's, but for the compilation cache and a compiler that does not try: programs of few steps end sooner."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def jaxpost(*arguments: str, command: Sequence[str] = COMMAND, **options: Any) -> subprocess.CompletedProcess[str]:
    """The verb, to its end."""
    options = {"stdin": subprocess.DEVNULL, "env": environment()} | options
    if "input" in options:
        del options["stdin"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, encoding="utf-8", cwd=ROOT, timeout=300, **options
    )


def steps(run: Path) -> int:
    """The last step whose training metrics are on disk."""
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return 0
    return max((line["step"] for line in lines if "grad_norm" in line), default=0)


def kept(run: Path) -> int:
    """The last step whose checkpoint is whole."""
    whole = (run / "checkpoints" / "latest").glob("*/commit_success.txt")
    return max((int(mark.parent.name) for mark in whole if mark.parent.name.isdigit()), default=0)


def stopped(*arguments: str, run: Path, signal: int, after: int, keeps: int = 0) -> tuple[int, str]:
    """The verb, ended by a signal once so many steps are known to be done, and a checkpoint of the step `keeps` to be
    whole: its exit code and all it said."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(),
    ) as process:
        deadline = time.monotonic() + 300
        while (steps(run) < after or kept(run) < keeps) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said


def saved(run: Path) -> tuple[int, dict[str, bytes], Any]:
    """The newest checkpoint to the bit: its step, its arrays by name, and where its data stands."""
    directory = run / "checkpoints" / "latest"
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(directory.absolute(), item_names=("state", "data"), options=options) as manager:
        step = manager.latest_step()
        assert step is not None, f"no checkpoint in {directory}"
        item = ocp.args.Composite(state=ocp.args.PyTreeRestore(), data=ocp.args.JsonRestore())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sharding info not provided")  # as saved, which is all that is asked
            read = manager.restore(step, args=item)
    arrays = jax.tree.leaves_with_path(read["state"])
    return step, {jax.tree_util.keystr(path): _bits(leaf) for path, leaf in arrays}, read["data"]


def _bits(leaf: Any) -> bytes:
    array = np.asarray(leaf)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()


def inputs(directory: Path) -> dict[str, tuple[str, ...]]:
    """What each tiny config needs besides itself, as flags: files are made in the directory."""
    tokens, rows = directory / "tokens.npy", directory / "rows.jsonl"
    if not rows.exists():
        documents = nano.Documents("train", 60)
        texts = ({"text": documents[i]} for i in range(len(documents)))
        np.save(tokens, blocks(texts, SentencePieceTokenizer.load(TOKENIZER), 65)[:60])
        asked = [(f"What is {i} plus {i}?", f"{i} + {i} = {2 * i}. " * (1 + i % 9)) for i in range(60)]
        made = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in asked]
        rows.write_text("".join(made))
    return {
        "bitdelta_nano": ("--of", str(directory.parent / "flan_nano_full" / "run")),
        "classify_nano_prefix": (),
        "dpo_nano": (),
        "flan_nano_full": (),
        "flan_nano_lora": (),
        "grpo_nano": (),
        "methods_nano": (),
        "nano_pretrain": ("--model.tokenizer", TOKENIZER, "--data.path", str(tokens), "--batches.seq-len", "64"),
        "ppo_nano": (),
        "sft_gsm8k_lora": ("--model.tokenizer", TOKENIZER, "--model.model.vocab", "2048", "--data.train", str(rows)),
    }


def once(directory: Path, make: Callable[[], None]) -> None:
    """`make` in this process, or wait until another one has: a run is shared by all processes that test."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    mark = directory.with_name(f"{directory.name}.done")
    try:
        directory.with_name(f"{directory.name}.begun").mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 600  # two commands: one may start from another's run
        while not mark.exists():
            assert time.monotonic() < deadline, f"{directory} was never finished by the process that began it"
            time.sleep(0.05)
        return
    try:
        make()
    finally:
        mark.touch()
