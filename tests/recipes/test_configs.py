# SPDX-License-Identifier: Apache-2.0
"""Configs are found, called and changed by flags; what is wrong in a file is said with its place."""

import random
import sys
from dataclasses import replace

import pytest

from jaxpost.delta import Lora
from jaxpost.faults import Fault
from jaxpost.recipes import configs, flags, record, sft
from tests.conftest import ROOT

HEAD = "from jaxpost.recipes import sft\n"
NEIGHBOUR = "import one\n\ndef base():\n    return one.base()\n"


@pytest.fixture(autouse=True)
def undone(monkeypatch):
    """What a config file may add to the interpreter goes with its test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name == "one" or name.startswith("jaxpost_config_"):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    def write(text, name="one.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_function_is_named_behind_a_colon(file):
    path = file(HEAD + "def base():\n    return sft.Config(run='a')\ndef big():\n    return sft.Config(run='b')\n")
    assert configs.load(str(path)) == sft.Config(run="a") and configs.load(f"{path}:big") == sft.Config(run="b")
    assert configs.listed(path) == ("", ["base", "big"])


def test_private_functions_and_those_with_arguments_are_no_configs(file):
    path = file(HEAD + "def base(x=1):\n    ...\ndef _own():\n    ...\nfrom jaxpost.faults import nearest\n")
    assert configs.listed(path)[1] == []
    with pytest.raises(Fault, match="has no config 'base'; known: none"):
        configs.load(str(path))


def test_a_config_may_be_made_from_its_neighbour(file):
    file(HEAD + "def base():\n    return sft.Config(run='a')\n")
    assert configs.load(str(file(NEIGHBOUR, "two.py"))).run == "a"


def test_a_file_may_be_called_as_a_module_of_python_is(file):
    path = file(HEAD + "def base():\n    return sft.Config(run='a')\n", "random.py")
    assert configs.load(str(path)).run == "a"
    assert sys.modules["random"] is random


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "def base(:\n", "one.py, line 2: not Python"),
        ("import jaxposs\n", "one.py, line 1: ModuleNotFoundError: No module named 'jaxposs'"),
        (HEAD + "\nx = unknown\n", "one.py, line 3: NameError"),
        (HEAD + "def base():\n    return 1 / 0\n", "one.py, line 3: ZeroDivisionError"),
        (HEAD + "def base():\n    return sft.Config(run='a', optm=1)\n", "argument 'optm'; did you mean optim"),
        (
            HEAD + "def base():\n    return sft.Config(\n      run='a', train=sft.Training(stepss=1))\n",
            "argument 'stepss'; did you mean steps",
        ),
        (HEAD + "def base():\n    return 5\n", "int is not the config of a recipe"),
        (HEAD + "def base():\n    return sft.Batches()\n", "Batches is not the config of a recipe"),
        (HEAD + "def base():\n    return sft.Config\n", "type is not the config of a recipe"),
    ],
)
def test_what_is_wrong_in_a_file(file, text, said):
    with pytest.raises(Fault) as refused:
        configs.load(str(file(text)))
    assert said in str(refused.value)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(Fault, match="did you mean configs/flan_nano_lora.py"):
        configs.load("configs/flan_nano_lra.py")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(Fault, match="no such config file"):
        configs.load(str(tmp_path / "config.yaml"))


def test_a_run_directory_stands_for_its_run_wherever_it_is(tmp_path):
    config = sft.Config(run="elsewhere", delta=Lora(rank=3))
    record.write(tmp_path, config)
    assert configs.load(str(tmp_path)) == replace(config, run=str(tmp_path))


def test_flags_change_fields_and_nothing_else():
    config = sft.Config(run="a", data=sft.Files("x.jsonl"))
    words = ["--optim.lr", "1e-3", "--delta.targets", "q", "v", "--data.columns", "a", "prompt", "--run=b"]
    words += ["--delta.rank-stabilised", "True", "--train.mesh.fsdp", "-1", "--batches.seq_len", "64"]
    assert flags.override(config, words, "jaxpost train x") == replace(
        config,
        run="b",
        optim=replace(config.optim, lr=1e-3),
        delta=Lora(targets=("q", "v"), rank_stabilised=True),
        data=replace(config.data, columns={"a": "prompt"}),
        batches=replace(config.batches, seq_len=64),
    )
    assert flags.override(config, [], "jaxpost train x") == config
