# SPDX-License-Identifier: Apache-2.0
"""Rewards against KL: which values are taken, how they are made comparable, and what the drawing says."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.evals import tradeoff
from jaxpost.evals.curves import draw

CONFIG = {
    "rewards": [
        {"type": "x:RewardModel", "run": "runs/judge/", "weight": 1.0, "name": ""},
        {"type": "x:Function", "of": "reviews_gold", "weight": 0.0, "name": "gold"},
        {"type": "x:Function", "of": "mine.py:polite", "weight": 0.5, "name": ""},
        {"type": "x:Function", "of": "length:20", "weight": 0.5, "name": ""},
    ]
}
JUDGE, GOLD, KL = (-1.0, 0.0, 1.0, 2.0), (0.4, 0.6, 0.5, 0.2), (0.0, 1.0, 4.0, 9.0)


def records(prefix: str = "eval_") -> list[dict]:
    values = zip(KL, JUDGE, GOLD, strict=True)
    names = [f"{prefix}{name}" for name in ("kl", "reward/judge", "reward/gold")]
    return [{"step": 10 * i, **dict(zip(names, row, strict=True))} for i, row in enumerate(values)]


def found(name: str = "a", prefix: str = "eval_", config=CONFIG) -> tradeoff.Path:
    path = tradeoff.path_of(name, records(prefix), config)
    assert path is not None
    return path


def test_held_out_values_are_taken_where_there_are_some():
    noise = [{"step": 10 * i + 5, "kl": 99.0, "reward/judge": 7.0, "reward/gold": 7.0} for i in range(4)]
    path = tradeoff.path_of("a", sorted(records() + noise, key=lambda r: r["step"]), CONFIG)
    assert path is not None and path.held_out
    assert (path.steps, path.kl, path.rewards["gold"]) == ((0, 10, 20, 30), KL, GOLD)
    assert not found(prefix="").held_out
    assert tradeoff.path_of("a", records()[:2]) is None
    assert tradeoff.path_of("a", [{"step": i, "kl": 1.0, "reward": 1.0} for i in range(9)]) is None
    assert tradeoff.path_of("a", [{**r, "eval_kl": math.nan} for r in records()]) is None


def test_training_values_are_smoothed_alike():
    noisy = [{"step": i, "kl": 0.1 * i + (-1) ** i, "reward/judge": 0.2 * i + (-1) ** i} for i in range(400)]
    path = tradeoff.path_of("a", noisy)
    assert path is not None and len(path.kl) <= tradeoff.MOST
    assert all(value == pytest.approx(2 * kl, abs=3) for kl, value in zip(path.kl, path.rewards["judge"], strict=True))
    assert list(path.kl) == sorted(path.kl)


def test_sources_are_known_by_the_names_that_the_metrics_have():
    assert tradeoff.weights_of(CONFIG) == {"judge": 1.0, "gold": 0.0, "polite": 0.5, "length": 0.5}
    assert tradeoff.weights_of({}) == tradeoff.weights_of({"rewards": "torn"}) == {}


def test_the_best_place_is_by_what_is_only_watched():
    path = found()
    assert path.watched == ("gold",)
    assert tradeoff.moment(path, path.best) == tradeoff.Moment(10, 1.0, {"judge": 0.0, "gold": 0.6})
    assert found(config={}).watched == ()


def test_each_source_starts_at_0_and_spans_1():
    panel = tradeoff.panel([found()])
    assert panel is not None
    gold, judge = panel.series
    assert (gold.name, gold.dash, judge.name, judge.dash) == ("gold", 0, "judge", 1)
    assert judge.values == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert gold.values == pytest.approx((0, 0.5, 0.25, -0.5))
    assert gold.across == KL


@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e3))
def test_standardised_rewards_know_neither_unit_nor_zero(shift, scale):
    moved = [{**r, "eval_reward/gold": shift + scale * r["eval_reward/gold"]} for r in records()]
    path = tradeoff.path_of("a", moved, CONFIG)
    assert path is not None
    here, there = tradeoff.panel([found()]), tradeoff.panel([path])
    assert here is not None and there is not None
    assert there.series[0].values == pytest.approx(here.series[0].values, abs=1e-6)


def test_runs_that_did_not_move_are_not_drawn():
    still = tradeoff.path_of("a", [{**r, "eval_kl": 0.0} for r in records()])
    assert still is not None and tradeoff.panel([still]) is None and tradeoff.panel([]) is None


def test_several_runs_share_a_scale_and_have_colours_of_their_own():
    one, other = found(), tradeoff.path_of("b", [{**r, "eval_reward/judge": 5.0} for r in records()], CONFIG)
    assert other is not None
    panel = tradeoff.panel([one, other], {"a": 2, "b": 5})
    assert panel is not None
    assert [(s.name, s.colour, s.dash) for s in panel.series] == [
        ("a, gold", 2, 0),
        ("a, judge", 2, 1),
        ("b, gold", 5, 0),
        ("b, judge", 5, 1),
    ]
    assert panel.series[1].values[-1] == pytest.approx(3 / 6)  # judge spans -1 to 5 over both runs


def test_the_drawing_is_by_the_root_of_the_kl_and_says_what_is_pointed_at():
    panel = tradeoff.panel([found()])
    assert panel is not None
    svg = ET.fromstring(draw(panel))
    (path, _) = [e.get("d") or "" for e in svg.iter("path") if (e.get("class") or "").startswith("line")]
    places = [float(x) for x, _ in re.findall(r"([\d.]+) ([\d.]+)", path)]
    assert [b - a for a, b in zip(places, places[1:], strict=False)] == pytest.approx(
        [places[1] - places[0]] * 3, abs=0.2
    )
    titles = [e.text for e in svg.iter("title")]
    assert "gold\nstep 20\nKL 4\ngold 0.5\njudge 1" in titles and len(titles) == 8
    texts = [e.text for e in svg.iter("text")]
    assert tradeoff.CAPTION in texts and {"0.5", "1", "2", "4", "8"} < set(texts) and "5" not in texts
    assert "gold 0 at 0, -0.5 at 9" in (svg.get("aria-label") or "")
