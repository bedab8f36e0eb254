# SPDX-License-Identifier: Apache-2.0
"""Pairs told apart, and confidence held against the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.evals.preferences import calibration, lines, reliability, told_apart

margins = st.lists(st.floats(-20, 20), min_size=1, max_size=60).map(np.array)


def test_pairs_are_told_apart_as_a_whole_and_by_the_token():
    sums = np.array([[-4.0, -6.0, -9.0, -8.0, 0.0, 0.0]])
    lengths = np.array([[1.0, 3.0, 3.0, 2.0, 0.0, 0.0]])
    batch = {"weight": np.array([[1.0, 0.5, 0.0]])}
    assert told_apart([(batch, sums, lengths)]) == {
        "likelier as a whole": (0.5, 2),
        "likelier by the token": (0.5, 2),
    }
    assert told_apart([(batch, sums[:, ::-1], lengths)]) != {}
    assert told_apart([({"weight": np.zeros((1, 3))}, sums, lengths)]) == {}


def test_single_answers_by_the_area_under_the_curve():
    sums = np.array([[-1.0, -2.0, -2.0, -3.0]])
    batch = {"weight": np.ones((1, 4)), "label": np.array([[1.0, 1.0, 0.0, 0.0]])}
    found = told_apart([(batch, sums, np.ones((1, 4)))])
    assert found["likelier as a whole"] == (pytest.approx(3.5 / 4), 4)
    beside = np.repeat(sums, 2, axis=1)  # an answer to something else stands beside each
    assert told_apart([(batch, beside, np.ones((1, 8)))])["likelier as a whole"] == (pytest.approx(3.5 / 4), 4)
    batch["label"] = np.ones((1, 4))
    assert np.isnan(told_apart([(batch, sums, np.ones((1, 4)))])["likelier as a whole"][0])


@given(margins)
def test_every_pair_is_in_a_bin_and_the_error_is_a_share(margins):
    told = calibration(margins)
    assert sum(each.count for each in told.bins) == len(margins)
    assert 0.0 <= told.error <= 1.0
    assert all(each.low <= each.predicted <= each.high + 1e-9 and 0.0 <= each.right <= 1.0 for each in told.bins)
    wins = sum(each.right * each.count for each in told.bins) / len(margins)
    assert wins == pytest.approx(np.mean(np.where(margins == 0, 0.5, margins > 0)))


def test_who_says_what_is_true_makes_no_error():
    sure = np.log(0.8 / 0.2)
    honest = calibration(np.array([sure] * 8 + [-sure] * 2))
    assert honest.error == pytest.approx(0.0, abs=1e-9) and len(honest.bins) == 1
    boast = calibration(np.array([9.0] * 5 + [-9.0] * 5))
    assert boast.error == pytest.approx(0.5, abs=1e-3)
    assert "50.0 %" in lines(boast)[0] or "Expected calibration error 50" in lines(boast)[0]
    assert reliability(boast).row_count == 1 and calibration(np.zeros(0)).bins == ()
    assert np.isfinite(calibration(np.array([1e6, -1e6])).error)
