# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: what differs, whose line is whose, and what is no run."""

import json
import re

import pytest

from jaxpost.evals.comparison import compare, distinct, grouped
from jaxpost.faults import Fault
from jaxpost.train.metrics import Writer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("runs"), []
    for coefficient in (0.0, 0.1):
        for seed in (0, 1):
            run = root / f"c{coefficient} <{seed}>"
            with Writer(run, tensorboard=False) as writer:
                for step in range(0, 40, 10):
                    kl = step * (1 - 5 * coefficient)
                    values = {"kl": kl, "reward/judge": kl / 10, "reward/gold": 0.3 - kl / 100}
                    writer.write(step, {f"eval_{name}": value for name, value in values.items()})
            rewards = [{"run": "judge", "weight": 1.0}, {"of": "x", "name": "gold", "weight": 0.0}]
            config = {"run": str(run), "penalty": {"coefficient": coefficient}, "train": {"seed": seed}}
            (run / "config.json").write_text(json.dumps({**config, "rewards": rewards}))
            made.append(run)
    return made


def test_the_page_shows_what_differs_and_the_runs_together(runs, tmp_path):
    source = compare(runs, tmp_path).read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", source.partition("</style>")[2]))
    for part in ("4 runs side by side", "penalty.coefficient", "train.seed", "c0.0 &lt;1&gt;",
                 "penalty.coefficient 0.1 (2 runs)", "gold (only watched)", "judge (learned from)",
                 "where gold was highest", "Reward by source: gold, held out", "KL from the model"):  # fmt: skip
        assert part in text, part
    assert (tmp_path / "comparison.html").is_file() and "<script" not in source
    assert "c0.0 &lt;0&gt; 0.3 0 0 0 0.3 0 30 30 0 3" in text  # start, best, end


def test_runs_that_differ_by_their_seed_have_one_colour(runs):
    configs = {run.name: json.loads((run / "config.json").read_text()) for run in runs}
    groups, varied = grouped(configs)
    assert varied == ["penalty.coefficient", "train.seed"]
    assert [colour for colour, _ in groups.values()] == [0, 0, 1, 1]
    assert groups["c0.0 <0>"][1] == "penalty.coefficient 0.0 (2 runs)"
    single, _ = grouped({name: configs[name] for name in ("c0.0 <0>", "c0.1 <0>")})
    assert single == {"c0.0 <0>": (0, "c0.0 <0>"), "c0.1 <0>": (1, "c0.1 <0>")}
    unknown, _ = grouped({"a": {}, "b": {}})
    assert unknown == {"a": (0, "a"), "b": (1, "b")}


def test_the_page_goes_to_the_first_run_or_where_it_is_wanted(runs, tmp_path):
    assert compare(runs[1:3]) == runs[1] / "comparison.html"
    assert compare(runs[:2], tmp_path / "both.html") == tmp_path / "both.html"
    with pytest.raises(Fault, match="there is no directory"):
        compare(runs, tmp_path / "no" / "both.html")


def test_names_tell_runs_apart(tmp_path):
    assert distinct([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert distinct([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_what_cannot_be_compared_is_a_fault(runs, tmp_path):
    with pytest.raises(Fault, match="nowhere is no run directory"):
        compare([runs[0], tmp_path / "nowhere"])
    with pytest.raises(Fault, match="is named twice"):
        compare([runs[0], runs[0] / ".." / runs[0].name])
    with pytest.raises(Fault, match="one run is nothing to compare"):
        compare(runs[:1])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text("{}")
    with pytest.raises(Fault, match="has measured nothing yet"):
        compare([runs[0], tmp_path / "new"])
