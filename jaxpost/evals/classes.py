# SPDX-License-Identifier: Apache-2.0
"""How well classes and spans are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxpost.arrays import Array, Float, Int


def confusion(scores: Float[Array, "b s c"], targets: Int[Array, "b s"], mask: Float[Array, "b s"]) -> Array:
    """How often something of class i (the row) was called class j, `[c, c]`."""
    said = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1])
    return jnp.einsum("bsi,bsj,bs->ij", jax.nn.one_hot(targets, scores.shape[-1]), said, mask)


def best_spans(scores: Float[Array, "b s 2"], segments: Int[Array, "b s"]) -> Int[Array, "b s 2"]:
    """At every place, where the best span of its segment starts and ends: the one with the largest sum of the two
    scores among those that do not end before they start. Of equals the first."""

    def row(scores: Array, segments: Array) -> Array:
        places = jnp.arange(segments.shape[0])
        allowed = (segments[:, None] == segments[None, :]) & (places[:, None] <= places[None, :])
        starting = jnp.where(allowed, scores[:, :1], -jnp.inf)
        values = jnp.max(starting, axis=0) + scores[:, 1]
        top = jax.ops.segment_max(values, segments, segments.shape[0] + 1)[segments]
        at = jnp.where(values == top, places, segments.shape[0] - 1)
        end = jax.ops.segment_min(at, segments, segments.shape[0] + 1)[segments]
        return jnp.stack([jnp.argmax(starting, axis=0)[end], end], axis=-1)

    return jax.vmap(row)(scores.astype(jnp.float32), segments)


def marked_spans(targets: Int[Array, "b s"], segments: Int[Array, "b s"]) -> Int[Array, "b s 2"]:
    """At every place, where the span starts and ends that is marked in its segment (1 its first token, 2 its last)."""

    def row(targets: Array, segments: Array) -> Array:
        places = jnp.arange(segments.shape[0])
        marks = jnp.stack([targets & 1, targets >> 1 & 1], axis=-1)
        found = jnp.where(marks > 0, places[:, None], 0)
        return jax.ops.segment_max(found, segments, segments.shape[0] + 1)[segments]

    return jax.vmap(row)(targets, segments)


def overlap(one: Int[Array, "*b 2"], other: Int[Array, "*b 2"]) -> Float[Array, "*b"]:
    """The F1 of two spans as sets of tokens (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250): twice what they
    share over both their lengths."""
    first, last = jnp.maximum(one[..., 0], other[..., 0]), jnp.minimum(one[..., 1], other[..., 1])
    lengths = one[..., 1] - one[..., 0] + other[..., 1] - other[..., 0] + 2
    return 2.0 * jnp.maximum(last - first + 1, 0) / lengths


@dataclass(frozen=True)
class Told:
    """Of one class: how many there were, the share of those called so that are, and of those that are called so."""

    name: str
    count: int
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def told(counts: np.ndarray, names: Sequence[str]) -> list[Told]:
    """Precision and recall of every class, 0 where nothing is or is called so."""
    counts = counts.astype(np.float64)
    right, are, called = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    precision, recall = right / np.maximum(called, 1), right / np.maximum(are, 1)
    return [
        Told(*each) for each in zip(names, are.astype(int).tolist(), precision.tolist(), recall.tolist(), strict=True)
    ]


def summary(classes: Sequence[Told]) -> dict[str, Any]:
    """Accuracy, the macro F1 (the mean over the classes that there were), and each class."""
    total = sum(each.count for each in classes)
    right = sum(each.recall * each.count for each in classes)
    seen = [each.f1 for each in classes if each.count]
    every = {each.name: vars(each) | {"F1": each.f1} for each in classes}
    return {"accuracy": right / max(1, total), "macro F1": sum(seen) / max(1, len(seen)), "count": total} | {
        "classes": every
    }


def table(classes: Sequence[Told]) -> Table:
    made = Table(title="held-out rows, by class")
    for name in ("class", "count", "precision", "recall", "F1"):
        made.add_column(name, justify="left" if name == "class" else "right")
    for each in classes:
        made.add_row(each.name, str(each.count), *(f"{100 * x:.1f} %" for x in (each.precision, each.recall, each.f1)))
    return made
