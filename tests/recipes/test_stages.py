# SPDX-License-Identifier: Apache-2.0
"""A pipeline that was killed goes on where it was, and ends as if it had not been."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from jaxpost.faults import Fault
from jaxpost.recipes.feedback import stages
from jaxpost.recipes.feedback.stages import Stage, follow, rows_kept
from jaxpost.recipes.rlaif import Config
from jaxpost.train import metrics


class Killed(Exception):
    pass


@dataclass
class Maker:
    """Rows from their numbers' own dice; dies before it makes the row of that number."""

    dies: int | None = None
    made: int = 0

    def __call__(self, numbers):
        if self.dies is not None and self.dies in numbers:
            raise Killed
        self.made += len(numbers)
        return [{"number": i, "text": f"ü\u2028{np.random.default_rng(i).random()}"} for i in numbers]


@pytest.mark.parametrize("torn", [b"", b'{"number": 4, "te'])
def test_rows_are_kept_as_they_are_made(tmp_path, torn):
    whole = rows_kept(tmp_path / "whole.jsonl", 11, 4, Maker(), "making")
    assert [row["number"] for row in whole] == list(range(11))
    path = tmp_path / "killed.jsonl"
    with pytest.raises(Killed):
        rows_kept(path, 11, 4, Maker(dies=6), "making")
    with path.open("ab") as file:
        file.write(torn)
    again = Maker()
    assert rows_kept(path, 11, 4, again, "making") == whole and again.made == 7
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    over = Maker()
    assert rows_kept(path, 11, 4, over, "making") == whole and over.made == 0


def test_a_part_of_which_some_rows_are_there_is_made_again(tmp_path):
    """What a chunk's rows are may depend on each other: a chunk is kept whole or not at all."""
    path = tmp_path / "rows.jsonl"
    whole = rows_kept(path, 6, 4, Maker(), "making")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    again = Maker()
    assert rows_kept(path, 6, 4, again, "making") == whole and again.made == 2


def pipeline(done, dies=""):
    def act(name):
        def inner(folder):
            if name == dies:
                raise Killed
            done.append(name)
            (folder / "work").write_text(name)
            return {"rows": 1_000, "measures": {"rude": 0.5 / (1 + len(done)), "tokens": 3.0}, "said": {"ties": 0.25}}

        return inner

    return [Stage(name, act(name)) for name in ("draw", "judge", "learn")]


def samples():
    return [{"prompt": "Q", "before": "old", "after": "new"}]


def test_a_finished_stage_is_not_done_again(tmp_path, capsys):
    run, config, done = tmp_path / "run", Config("run"), []
    with pytest.raises(Killed):
        follow(config, run, pipeline(done, dies="learn"), samples)
    assert done == ["draw", "judge"] and not (run / "learn" / stages.DONE).exists()
    follow(config, run, pipeline(done), samples)
    assert done == ["draw", "judge", "learn"]
    told = capsys.readouterr().out
    assert "stage 3 of 3: learn" in told and "  said ties: 0.25" in told and "  rows: 1,000" in told
    facts = json.loads((run / "run.json").read_text())
    assert facts["judge: rows"] == 1000 and facts["learn: said ties"] == 0.25
    # What the stages measured is a curve over them, as over the steps of a run.
    assert [line["rude"] for line in metrics.read(run)] == [0.25, 0.5 / 3, 0.125]
    page = (run / "report.html").read_text()
    assert "Rude" in page and "draw: rows" in page and "old" in page
    lines = metrics.read(run)
    follow(config, run, pipeline(done, dies="draw"), samples)
    assert done == ["draw", "judge", "learn"]
    assert [one["rude"] for one in metrics.read(run)] == [one["rude"] for one in lines]


def test_a_begun_pipeline_keeps_its_settings(tmp_path):
    follow(Config("run"), tmp_path / "run", pipeline([]), samples)
    with pytest.raises(Fault, match="holds a run with other settings: rounds was 1 and is now 2"):
        follow(Config("run", rounds=2), tmp_path / "run", pipeline([]), samples)
