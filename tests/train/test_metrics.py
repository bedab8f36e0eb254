# SPDX-License-Identifier: Apache-2.0
"""The record of a run: whole lines, never ahead of the checkpoint, readable by any JSON parser and by TensorBoard."""

import json
import math
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxpost.faults import Fault
from jaxpost.train.metrics import Writer, environment, read, write_facts


def events(run_dir: Path) -> list[list[Event]]:
    """The events of each TensorBoard file, parsed from the record framing."""
    files = []
    for file in sorted((run_dir / "tensorboard").iterdir(), key=lambda file: file.suffix):
        data, found = file.read_bytes(), []
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
        files.append(found)
    return files


def test_a_line_is_on_disk_when_write_returns(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write(1, {"loss": jnp.float32(2.5), "tokens": 7, "lr": np.float64(1e-3)})
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
        record = json.loads(line)
        assert record.pop("time") > 1e9
        assert record == {"step": 1, "loss": 2.5, "tokens": 7.0, "lr": 1e-3}


def test_not_finite_is_null_for_parsers_and_itself_for_tensorboard(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write(1, {"loss": math.nan, "grad_norm": math.inf})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert record["loss"] is None and record["grad_norm"] is None
    assert math.isnan(read(tmp_path)[0]["loss"])
    values = {value.tag: value.simple_value for value in events(tmp_path)[0][-1].summary.value}
    assert math.isnan(values["loss"]) and values["grad_norm"] == math.inf


def test_resuming_drops_what_the_checkpoint_does_not_know(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": float(step)})
    with Writer(tmp_path, step=4) as writer:
        assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4]
        writer.write(5, {"loss": 50.0})
    assert [record["loss"] for record in read(tmp_path)] == [1.0, 2.0, 3.0, 4.0, 50.0]
    first, second = events(tmp_path)
    assert [event.step for event in first if event.summary.value] == [1, 2, 3, 4, 5, 6, 7]
    (purge,) = (event for event in second if event.session_log.status == SessionLog.START)
    assert purge.step == 5  # TensorBoard forgets steps from here on
    assert [event.step for event in second if event.summary.value] == [5]


def test_a_torn_last_line_is_left_out_and_then_gone(tmp_path):
    with Writer(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write(2, {"loss": 2.0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "time": 17, "lo')
    assert [record["step"] for record in read(tmp_path)] == [1, 2]
    with Writer(tmp_path, step=2, tensorboard=False) as writer:
        writer.write(3, {"loss": 3.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert not (tmp_path / "tensorboard").exists()


def test_a_step_written_twice_is_merged_and_the_later_value_counts(tmp_path):
    with Writer(tmp_path, tensorboard=False) as writer:
        writer.write(2, {"loss": 2.0})
        writer.write(1, {"loss": 1.0, "lr": 0.1})
        writer.write(1, {"loss": 1.5, "eval/loss": 3.0})
    first, second = read(tmp_path)
    assert {name: first[name] for name in ("step", "loss", "lr", "eval/loss")} == {
        "step": 1, "loss": 1.5, "lr": 0.1, "eval/loss": 3.0,
    }  # fmt: skip
    assert second["step"] == 2


@given(
    steps=st.lists(st.integers(0, 30), max_size=20),
    at=st.integers(0, 30),
    cut=st.integers(0, 40),
)
def test_no_resume_ever_leaves_a_later_step(tmp_path_factory, steps, at, cut):
    run_dir = tmp_path_factory.mktemp("run")
    with Writer(run_dir, tensorboard=False) as writer:
        for step in steps:
            writer.write(step, {"loss": float(step)})
    path = run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])
    survived = [record["step"] for record in read(run_dir)]
    with Writer(run_dir, step=at, tensorboard=False):
        pass
    assert [record["step"] for record in read(run_dir)] == [step for step in survived if step <= at]
    assert all(json.loads(line)["step"] <= at for line in path.read_text().splitlines())


def test_no_record_is_an_empty_list(tmp_path):
    assert read(tmp_path) == []


def test_a_full_disk_is_a_fault(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    writer._lines.close()
    writer._lines = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with writer, pytest.raises(Fault, match="No space left on device.*last checkpoint"):
        writer.write(1, {"loss": 1.0})


def test_a_run_directory_that_is_a_file_is_a_fault(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(Fault, match="cannot write in"):
        Writer(tmp_path / "run")


def test_a_metric_may_not_hide_the_step(tmp_path):
    with Writer(tmp_path) as writer, pytest.raises(ValueError, match="step"):
        writer.write(1, {"step": 2.0})


def test_facts_are_written_whole(tmp_path):
    write_facts(tmp_path, environment() | {"tokens": 12})
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["tokens"] == 12 and facts["devices"] == "8 x cpu"
    assert {"jax", "jaxpost", "python"} < facts.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(Fault, match=r"cannot write .*run\.json"):
        write_facts(tmp_path / "elsewhere", {})
