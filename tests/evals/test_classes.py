# SPDX-License-Identifier: Apache-2.0
"""Spans are found, and classes counted, as trying everything out finds and counts them."""

import io

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxpost.evals import classes
from tests.losses.test_spans import ROWS, segments_of


@given(rows=ROWS, seed=st.integers(0, 99), tied=st.booleans())
@settings(max_examples=25)
def test_the_best_span_is_the_best_of_all(rows, seed, tied):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (2, 10, 2)) if tied else rng.normal(size=(2, 10, 2))
    segments = np.stack([segments_of(row) for row in rows])
    found = np.asarray(classes.best_spans(jnp.asarray(scores, jnp.float32), jnp.asarray(segments)))
    for i in range(2):
        for place in np.flatnonzero(segments[i]):
            own = np.flatnonzero(segments[i] == segments[i, place])
            every = [(scores[i, a, 0] + scores[i, b, 1], a, b) for a in own for b in own if a <= b]
            start, end = found[i, place]
            assert (start, end) in {(a, b) for _, a, b in every}
            np.testing.assert_allclose(scores[i, start, 0] + scores[i, end, 1], max(every)[0], rtol=1e-5)


def test_what_is_marked_is_found_again():
    targets, segments = jnp.array([[0, 1, 0, 2, 0, 3, 0]]), jnp.array([[1, 1, 1, 1, 2, 2, 0]])
    found = classes.marked_spans(targets, segments)
    assert found[0, :6].tolist() == [[1, 3]] * 4 + [[5, 5]] * 2


def test_overlap_by_hand():
    def f1(one, other):
        return float(classes.overlap(jnp.array(one), jnp.array(other)))

    assert f1([2, 4], [2, 4]) == 1.0 and f1([2, 4], [5, 6]) == 0.0
    np.testing.assert_allclose([f1([2, 4], [4, 4]), f1([0, 9], [2, 3])], [2 / 4, 4 / 12], rtol=1e-6)


def test_precision_and_recall_by_hand():
    """Three are a, of which one is called b; one is b and called so; no c is there, and one padding place called c."""
    said, targets = jnp.eye(3)[jnp.array([[0, 0, 1, 1, 2]])], jnp.array([[0, 0, 0, 1, 0]])
    counts = np.asarray(classes.confusion(said, targets, jnp.array([[1.0, 1, 1, 1, 0]])))
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    told = classes.told(counts, ["a", "b", "c"])
    assert [(each.count, each.precision, round(each.recall, 3)) for each in told] == [
        (3, 1.0, 0.667),
        (1, 0.5, 1.0),
        (0, 0, 0),
    ]
    found = classes.summary(told)
    assert found["accuracy"] == 0.75 and found["count"] == 4 and found["classes"]["c"]["F1"] == 0
    np.testing.assert_allclose(found["macro F1"], (0.8 + 2 / 3) / 2)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(classes.table(told))
    assert "66.7 %" in console.export_text()
