# SPDX-License-Identifier: Apache-2.0
"""Runs that several tests look at, each made once."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end import runs


@dataclass(frozen=True)
class Finished:
    """A tiny config trained to its end by one uninterrupted command."""

    run: Path
    code: int
    said: str
    complained: str


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """A folder that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "end_to_end"
    path.mkdir(exist_ok=True)
    runs.once(path / "inputs", lambda: _made(path / "inputs"))
    return path


def _made(directory: Path) -> None:
    directory.mkdir()
    runs.inputs(directory)


@pytest.fixture(scope="session")
def flags(workshop):
    """What a tiny config needs besides itself."""
    return runs.inputs(workshop / "inputs").__getitem__


@pytest.fixture(scope="session")
def finished(workshop, flags):
    """`finished(config)`: its run, trained when first asked for."""

    def train(config: str) -> Finished:
        folder = workshop / config
        run = folder / "run"

        def make() -> None:
            if config in runs.FROM:
                train(runs.FROM[config])
            folder.mkdir()
            done = runs.jaxpost("train", f"configs/{config}.py:tiny", "--run", str(run), *flags(config))
            for name, text in (("code", str(done.returncode)), ("said", done.stdout), ("complained", done.stderr)):
                (folder / name).write_text(text, encoding="utf-8")

        runs.once(folder, make)
        code, said, complained = ((folder / n).read_text(encoding="utf-8") for n in ("code", "said", "complained"))
        return Finished(run, int(code), said, complained)

    return train
