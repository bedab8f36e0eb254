# SPDX-License-Identifier: Apache-2.0
"""How well better answers are told from worse ones, and how far a reward model's confidence can be believed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

BINS = 10


def told_apart(batches: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray]]) -> dict[str, tuple]:
    """Of batches of pairs (or of single answers with a `label`), with the sums of log-probabilities and the lengths of
    all their answers: how often the better answer is the likelier one, as a whole and by the token, and how many pairs
    (answers) that is of. Of single answers it is the area under the ROC curve: over all pairs of a good and a bad one.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("better", "worse", "better_mean", "worse_mean")}
    paired, count = True, 0
    for batch, sums, lengths in batches:
        there, means = batch["weight"] > 0, sums / np.maximum(lengths, 1.0)
        paired, step = "label" not in batch, sums.shape[1] // there.shape[1]
        first, first_mean = sums[:, ::step], means[:, ::step]
        better, worse = (there, there) if paired else (there & (batch["label"] > 0), there & (batch["label"] == 0))
        other, other_mean = (sums[:, 1::2], means[:, 1::2]) if paired else (first, first_mean)
        values = (first[better], other[worse], first_mean[better], other_mean[worse])
        for name, found in zip(parts, values, strict=True):
            parts[name].append(found)
        count += int(there.sum())
    if not count:
        return {}
    told = {name: np.concatenate(found).astype(np.float64) for name, found in parts.items()}
    judge = _wins if paired else _area
    return {
        "likelier as a whole": (judge(told["better"], told["worse"]), count),
        "likelier by the token": (judge(told["better_mean"], told["worse_mean"]), count),
    }


def _wins(better: np.ndarray, worse: np.ndarray) -> float:
    return float(np.mean(np.where(better == worse, 0.5, better > worse)))


def _area(good: np.ndarray, bad: np.ndarray) -> float:
    """The chance that a good answer has the higher number than a bad one; a tie counts one half."""
    if not len(good) or not len(bad):
        return float("nan")
    bad = np.sort(bad)
    below, upto = np.searchsorted(bad, good, side="left"), np.searchsorted(bad, good, side="right")
    return float(np.mean((below + upto) / 2) / len(bad))


@dataclass(frozen=True)
class Bin:
    """Pairs whose chance of the answer that is scored higher being the better one was predicted alike: how many, what
    was predicted in the mean, and what was true."""

    low: float
    high: float
    count: int
    predicted: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """`error` is the expected calibration error: the mean distance of prediction and truth over the bins, by their
    counts (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

    error: float
    bins: tuple[Bin, ...]


def calibration(margins: np.ndarray, bins: int = BINS) -> Calibration:
    """Of pairs by how much the better answer was scored higher (nats): `sigmoid(|margin|)` is the predicted chance of
    having told them apart, and it was when the margin is above 0. A margin of 0 is half right, at a chance of a half.
    """
    margins = np.asarray(margins, np.float64)
    if not len(margins):
        return Calibration(float("nan"), ())
    chance = 1.0 / (1.0 + np.exp(-np.minimum(np.abs(margins), 700.0)))
    right = np.where(margins == 0, 0.5, margins > 0)
    edges = np.linspace(0.5, 1.0, bins + 1)
    at = np.clip(np.searchsorted(edges, chance, side="right") - 1, 0, bins - 1)
    found, error = [], 0.0
    for i in range(bins):
        here = at == i
        if count := int(here.sum()):
            predicted, true = float(chance[here].mean()), float(right[here].mean())
            found.append(Bin(float(edges[i]), float(edges[i + 1]), count, predicted, true))
            error += count * abs(predicted - true)
    return Calibration(error / len(margins), tuple(found))


def reliability(told: Calibration) -> Table:
    made = Table(title=f"how far scores can be believed: expected calibration error {100 * told.error:.1f} %")
    for name in ("predicted to be right", "pairs", "mean prediction", "were right"):
        made.add_column(name, justify="right")
    for each in told.bins:
        span = f"{100 * each.low:.0f} to {100 * each.high:.0f} %"
        made.add_row(span, f"{each.count:,}", f"{100 * each.predicted:.1f} %", f"{100 * each.right:.1f} %")
    return made


def summary(told: Calibration) -> dict[str, Any]:
    return {"expected calibration error": told.error, "reliability": [vars(each) for each in told.bins]}


def lines(told: Calibration) -> tuple[str, ...]:
    """The table in words, for a page without one."""
    each = (f"{100 * b.predicted:.0f} % of {b.count:,} ({100 * b.right:.0f} %)" for b in told.bins)
    return (
        f"Expected calibration error {100 * told.error:.1f} %: pairs predicted to be told apart, and those that were: "
        f"{', '.join(each)}.",
    )
