# SPDX-License-Identifier: Apache-2.0
"""Curves: the arithmetic of axes and smoothing, and that what is drawn is well-formed and says what it leaves out."""

import math
import re
import statistics
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.evals import curves
from jaxpost.evals.curves import Panel, Series, beyond, describe, draw, noisy, number, percent, smooth, thin, ticks


def line(values, name="training", steps=None) -> Series:
    return Series(name, tuple(steps or range(1, len(values) + 1)), tuple(values))


def panel(*series: Series, from_zero: bool = False) -> Panel:
    return Panel("Loss", series, number, from_zero)


def elements(svg: str, kind: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(svg).iter(kind)]


@pytest.mark.parametrize(
    "value, text",
    [(2.31416, "2.314"), (0.5, "0.5"), (12345.6, "12,346"), (1_204_000.0, "1.20M"), (3e-5, "3e-5"), (0.0, "0"),
     (math.nan, "not a number"), (-math.inf, "infinite"), (1e20, "1e20")],
)  # fmt: skip
def test_numbers_as_people_write_them(value, text):
    assert number(value) == text


def test_percent():
    assert [percent(x) for x in (0.4172, 0.6, math.nan)] == ["41.7 %", "60 %", "not a number"]


def test_ticks_by_hand():
    assert ticks(0.9, 3.7) == [1, 1.5, 2, 2.5, 3, 3.5]
    assert ticks(0, 600, 7) == [0, 100, 200, 300, 400, 500, 600]
    assert ticks(1, 2, 7, least=1) == [1, 2]
    assert ticks(5, 5) == [5]


@given(st.floats(-1e5, 1e5), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_within(ratio, size):
    low = ratio * size
    found = ticks(low, low + size)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * size <= tick <= low + size * (1 + 1e-6) for tick in found)
    gaps = [b - a for a, b in zip(found, found[1:], strict=False)]
    if gaps:
        assert max(gaps) - min(gaps) < 1e-3 * max(gaps)


def test_smoothing_follows_the_course_and_not_a_spike():
    values = [10 - i / 100 + (0.5 if i % 2 else -0.5) for i in range(800)]
    values[400] = 1e6
    course = smooth(list(enumerate(values)))
    assert max(abs(value - (10 - step / 100)) for step, value in course) < 0.6
    assert noisy(list(enumerate(values)))
    assert not noisy([(i, i / 10) for i in range(800)])


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300))
def test_smoothing_stays_close_to_what_there_is(values):
    course = smooth(list(enumerate(values)))
    assert [step for step, _ in course] == sorted({step for step, _ in course})
    reach = max(values) - min(values)
    assert all(min(values) - reach - 1e-6 <= value <= max(values) + reach + 1e-6 for _, value in course)
    if len(values) < 16:
        assert course[0][1] == pytest.approx(statistics.median(values))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=2000))
def test_thinning_keeps_order_and_extremes(values):
    points = list(enumerate(values))
    kept = thin(points, 100)
    assert len(kept) <= 100 and kept == sorted(kept) and set(kept) <= set(points)
    assert {max(values), min(values)} <= {value for _, value in kept}


def test_a_drawing_is_well_formed_and_stays_inside():
    losses = [3 * math.exp(-i / 50) + 0.1 * (-1) ** i for i in range(300)]
    svg = draw(panel(line(losses), line([2.0, 1.0, 0.5], "held out", [100, 200, 300])))
    drawn = [e.get("d") for e in elements(svg, "path") if (e.get("class") or "").startswith("line")]
    assert len(drawn) == 3  # raw, its course, held out
    for x, y in re.findall(r"([\d.]+) ([\d.]+)", " ".join(drawn)):
        assert 0 <= float(x) <= curves.WIDTH and 0 <= float(y) <= curves.HEIGHT
    titles = [e.text for e in elements(svg, "title")]
    assert any(re.fullmatch(r"step 200\ntraining [\d.e-]+\nheld out 1", title) for title in titles)
    assert len(titles) < 200


def test_values_that_are_not_finite_break_the_line_and_are_marked():
    svg = draw(panel(line([1.0, 2.0, math.nan, 3.0, 4.0, math.inf])))
    assert len([e for e in elements(svg, "path") if e.get("class") == "line s0"]) == 2
    assert len([e for e in elements(svg, "path") if e.get("class") == "bad"]) == 2
    assert "nan" not in svg and "not finite at 2 of 6 steps (first 3)" in svg


def test_nothing_finite_still_makes_a_drawing():
    svg = draw(panel(line([math.nan])))
    assert len([e for e in elements(svg, "path") if e.get("class") == "bad"]) == 1
    assert "not a number" in svg


def test_rare_spikes_do_not_set_the_scale_and_are_owned_up_to():
    values = [1 + i % 7 / 10 for i in range(200)]
    values[50] = 900.0
    assert beyond(panel(line(values))) == [900.0]
    assert beyond(panel(line(values[:40] + [900.0]))) == []  # too few values to call one rare
    labels = [float(e.text.replace(",", "")) for e in elements(draw(panel(line(values))), "text")]
    assert sorted(labels)[-1] <= 200  # the last step, not the spike


def test_one_point_and_a_level_line_can_be_drawn():
    assert 'class="dot s0"' in draw(panel(line([2.0], steps=[7])))
    assert elements(draw(panel(line([0.0, 0.0, 0.0]), from_zero=True)), "path")


def test_words_are_escaped():
    svg = draw(Panel("<b>&", (line([1.0, 2.0], '"x"<'),), number))
    assert ET.fromstring(svg).get("aria-label").startswith("<b>&: \"x\"<")  # fmt: skip


def test_a_curve_in_words():
    assert describe(panel(line([3.0, 2.0, 1.0]))) == "Loss: training 3 at step 1, 1 at step 3"
