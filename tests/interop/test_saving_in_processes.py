# SPDX-License-Identifier: Apache-2.0
"""Saving where two processes hold a model: both gather, one writes, and if it fails neither waits for the other."""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxpost import trees
from jaxpost.interop import load
from jaxpost.models.architecture import specs

REASON = "the model could not be saved; the first process, which writes it, says why"
ONE_OF_TWO = """
import sys
from pathlib import Path

import jax
import numpy as np

rank, port, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)

from jaxpost import trees
from jaxpost.faults import Fault
from jaxpost.interop import save
from jaxpost.models.architecture import Decoder, specs
from jaxpost.shard import MeshShape, make_mesh, shardings

config = Decoder(vocab=48, d=16, layers=2, heads=4, kv_heads=2, head_size=6, ffn=24, max_length=64)
flat = {path: spec for path, spec in trees.flatten(specs(config)).items() if not spec.optional}
places = trees.flatten(shardings(specs(config), make_mesh(MeshShape(fsdp=2))))
params = {}
for number, (path, spec) in enumerate(flat.items()):
    whole = np.arange(np.prod(spec.shape), dtype=np.float32).reshape(spec.shape) + number
    params[path] = jax.make_array_from_callback(spec.shape, places[path], lambda index: whole[index])
assert not params["embed"].is_fully_addressable and not params["embed"].is_fully_replicated


class Broken:
    bos = eos = pad = 1

    def save(self, directory):
        raise ValueError("no such file")


def full(done, total):
    if done > total // 3:
        raise OSError(28, "No space left on device")


for name, how in {"taken": {}, "broken": {"tokenizer": Broken()}, "full": {"report": full}, "good": {}}.items():
    try:
        save(out / name, config, trees.unflatten(params), **how)
        print(name, "saved")
    except (Fault, ValueError) as error:
        print(name, error)
"""


@pytest.fixture
def said(tmp_path):
    """What each of the two printed."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-c", ONE_OF_TWO]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    both = [subprocess.Popen([*command, rank, port, str(tmp_path)], **pipes) for rank in ("0", "1")]
    try:
        printed = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert [process.returncode for process in both] == [0, 0], printed
    return [dict(re.findall(r"^(taken|broken|full|good) (.*)$", out, re.MULTILINE)) for out, _ in printed]


def test_all_raise_where_the_first_cannot_write_and_none_waits(tmp_path, said):
    first, second = said
    assert "exists and holds no model" in first["taken"]
    assert first["broken"] == "no such file"
    assert "the model could not be saved (No space left on device)" in first["full"]
    for name in ("taken", "broken", "full"):
        assert second[name].endswith(f"{name}: {REASON}")
    assert first["good"] == second["good"] == "saved"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "taken"]
    config, params = load(tmp_path / "good")
    found = trees.flatten(params)
    wanted = {path: spec for path, spec in trees.flatten(specs(config)).items() if not spec.optional}
    for number, (path, spec) in enumerate(wanted.items()):
        np.testing.assert_array_equal(found[path], np.arange(np.prod(spec.shape)).reshape(spec.shape) + number)
