# SPDX-License-Identifier: Apache-2.0
"""A config goes into its record and comes back as it was; what cannot is refused before a run begins."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jaxpost.delta import Full, Lora
from jaxpost.faults import Fault
from jaxpost.recipes import configs, record, sft
from jaxpost.recipes.base import BUILT_IN
from tests.conftest import ROOT

CONFIG = sft.Config(run="runs/x")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_comes_back(path, tmp_path):
    for name in configs.listed(path)[1]:
        config = configs.load(f"{path}:{name}")
        record.write(tmp_path / name, config)
        assert record.read(tmp_path / name) == config
        assert not record.differences(record.read(tmp_path / name), config)


@pytest.mark.parametrize("columns", [None, {}, {"type": "prompt", "b": "completion"}])
def test_a_mapping_may_have_any_keys(columns, tmp_path):
    config = replace(CONFIG, data=sft.Files("x.jsonl", columns=columns))
    record.write(tmp_path, config)
    assert record.read(tmp_path) == config


def test_lists_become_tuples():
    config = replace(CONFIG, delta=Lora(targets=["q", "v"]))  # pyright: ignore[reportArgumentType]
    assert record.recorded(config).delta.targets == ("q", "v")


@dataclass(frozen=True)
class Mine:
    size: int = 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, data=Mine()), "data: 'tests.recipes.test_record:Mine' is no type of jaxpost's"),
        (replace(CONFIG, run=Path("x")), "run is PosixPath('x'), which a config cannot hold"),
        (replace(CONFIG, optim=sft.Optimiser(lr=float("nan"))), "optim.lr is nan, which a config cannot hold"),
    ],
)
def test_what_cannot_be_recorded_is_refused(config, said):
    with pytest.raises(Fault) as refused:
        record.recorded(config)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda saved: saved | {"extra": 1}, "Config has no field 'extra'"),
        (lambda saved: {name: value for name, value in saved.items() if name != "run"}, "Config lacks a field"),
        (lambda saved: saved | {"type": "os:system"}, "'os:system' is no type of jaxpost's"),
        (lambda saved: saved | {"type": "jaxpost.recipes.sft:main"}, "is no config type"),
        (lambda saved: saved | {"type": "jaxpost.recipes.sft:Gone"}, "this version of jaxpost has no type"),
        (lambda saved: [1], "is not the record of a run"),
        (lambda saved: {"model_type": "llama"}, "is not the record of a run"),
    ],
)
def test_a_record_that_makes_no_sense(change, said, tmp_path):
    record.write(tmp_path, CONFIG)
    path = tmp_path / record.FILE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(Fault) as refused:
        record.read(tmp_path)
    assert said in str(refused.value) and str(tmp_path) in str(refused.value)


def test_files_that_are_no_record(tmp_path):
    with pytest.raises(Fault, match="it has no config.json"):
        record.read(tmp_path)
    (tmp_path / record.FILE).write_text("{")
    with pytest.raises(Fault, match="is not JSON"):
        record.read(tmp_path)
    (tmp_path / record.FILE).write_bytes(b"\xff")
    with pytest.raises(Fault, match="cannot be read"):
        record.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Fault, match="cannot make .*; choose another"):
        record.write(tmp_path / "file" / "run", CONFIG)


def test_a_run_is_told_from_a_model(tmp_path):
    assert not record.is_run(BUILT_IN["nano"]) and not record.is_run(tmp_path)
    record.write(tmp_path, CONFIG)
    assert record.is_run(tmp_path)


def test_differences_are_named_by_their_fields():
    other = replace(CONFIG, delta=Full(), optim=replace(CONFIG.optim, lr=1.0))
    assert record.differences(CONFIG, CONFIG) == {}
    assert record.differences(CONFIG, other) == {
        "delta": (CONFIG.delta, Full()),
        "optim.lr": (CONFIG.optim.lr, 1.0),
    }
