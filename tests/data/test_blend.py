# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data.blend import Blend
from jaxpost.data.mixtures import Proportional, Temperature, Weights
from jaxpost.data.rows.views import place_of
from jaxpost.data.sources import Record
from jaxpost.faults import Fault

SIZES = {"small": 3, "middle": 10, "large": 50}


def blend(sizes=SIZES, **options):
    return Blend({name: [f"{name} {i}" for i in range(size)] for name, size in sizes.items()}, **options)


def test_by_default_an_epoch_is_every_row_once():
    rows = blend()
    assert len(rows) == 63 and sorted(rows) == sorted(
        f"{name} {i}" for name, size in SIZES.items() for i in range(size)
    )
    assert [rows.at(1, i) for i in range(63)] != list(rows)
    assert list(blend()) == list(rows) != list(blend(seed=1)), "the seed decides, and nothing else"


def test_rows_of_a_blend_know_where_they_are_from():
    sources = {name: [Record({}, f"{name}:{i}") for i in range(size)] for name, size in SIZES.items()}
    rows = Blend({"both": Blend(sources), "more": sources["small"]}, seed=3)
    for epoch in (0, 1):
        for i in (0, 30, 62, 65):
            assert place_of(rows, epoch, i) == rows.at(epoch, i).where


@pytest.mark.parametrize(
    ("weighting", "size", "wanted"),
    [
        (Weights({"small": 1, "middle": 0, "large": 3}), 40, {"small": 10, "middle": 0, "large": 30}),
        (Temperature(1e9), 30, {"small": 10, "middle": 10, "large": 10}),
        (Proportional(cap=5), None, {"small": 3, "middle": 5, "large": 5}),
    ],
)
def test_proportions_are_exact(weighting, size, wanted):
    rows = blend(weighting=weighting, size=size)
    assert rows.quotas == wanted and len(rows) == sum(wanted.values())
    drawn = [row.partition(" ")[0] for row in rows]
    assert {name: drawn.count(name) for name in SIZES} == wanted


@settings(max_examples=40)
@given(st.integers(1, 7), st.integers(1, 30), st.integers(1, 4), st.integers(0, 5))
def test_over_epochs_all_rows_of_a_source_are_seen_equally_often(size, quota, epochs, seed):
    rows = blend({"one": size}, size=quota, seed=seed)
    seen = [rows.at(epoch, i) for epoch in range(epochs) for i in range(quota)]
    counts = [seen.count(f"one {i}") for i in range(size)]
    assert max(counts) - min(counts) <= 1


def test_mixtures_of_nothing():
    for make, said in (
        (lambda: Blend({}), "needs a source"),
        (lambda: Blend({"a": []}), "source 'a' of a mixture has no rows"),
        (lambda: blend(size=0), "size must be at least 1"),
        (lambda: len(blend(weighting=Weights({"smal": 1.0}))), "did you mean small"),
    ):
        with pytest.raises(Fault, match=said):
            make()
