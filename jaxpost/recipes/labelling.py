# SPDX-License-Identifier: Apache-2.0
"""What a classifier says of texts that nobody has labelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost.data.batches.marks import Marked, Marks
from jaxpost.data.batches.packing import Group, lay, shift
from jaxpost.data.rows.labels import Kind
from jaxpost.data.tasks import Row
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.evals.classes import best_spans
from jaxpost.faults import Fault
from jaxpost.recipes.assembly import reserving
from jaxpost.recipes.classify import Config, choices, score
from jaxpost.recipes.labels import classes_of
from jaxpost.recipes.trained import Trained

WIDTH = 64  # texts are padded to a multiple of so many places, that few programs are compiled


@dataclass(frozen=True)
class Said:
    """The class of a text and of how likely each class is; of its words each; or the span that answers."""

    answers: tuple[str, ...]
    shares: tuple[dict[str, float], ...] = ()


def label(trained: Trained, rows: Sequence[Row]) -> list[Said]:
    """Labels for rows as the run's data have them, but for the labels: `text`, `tokens`, or `context` and maybe a
    `question`. A text that is longer than the model knows positions loses its end."""
    config, model = trained.config, trained.model
    if not isinstance(config, Config):
        raise Fault("this run has learned no classes; train one that has, with a config of the classify recipe")
    tokenizer = reserving(trained.tokenizer, config.delta)
    classes = classes_of(config.kind, config.labels, config.delta, model)
    groups = list(Marked([_asked(row, config.kind) for row in rows], tokenizer, config.kind, classes))
    batch = _laid(groups, config.kind, tokenizer, model.max_length)

    def judge(weights: Any, batch: Any) -> Any:
        scores = score(model, weights, batch, 1)
        if config.kind == "span":
            # The whole context is marked, so what stands before the first mark asks.
            asked = jnp.cumsum(batch["mask"], axis=1) == 0
            return best_spans(scores, jnp.where(asked, 0, choices(batch)))
        return jax.nn.softmax(scores)

    found = np.asarray(jax.jit(judge)(trained.weights, {name: jnp.asarray(x) for name, x in batch.items()}))
    said = []
    for i in range(len(rows)):
        own = found[i, np.flatnonzero(batch["mask"][i])]
        if config.kind == "span":
            said.append(Said((tokenizer.decode(batch["tokens"][i, own[0, 0] : own[0, 1] + 1]).strip(),)))
        else:
            shares = tuple(dict(zip(classes.called, each.tolist(), strict=True)) for each in own)
            said.append(Said(tuple(max(share, key=share.__getitem__) for share in shares), shares))
    return said


def _laid(groups: Sequence[Group], kind: Kind, tokenizer: Tokenizer, most: int) -> dict[str, np.ndarray]:
    """The texts as a batch, each in a row of its own."""
    length = min(most, -(-max(group.size for group in groups) // WIDTH) * WIDTH)
    unit, rows = Marks(kind, length), []
    for number, group in enumerate(groups, start=1):
        fitting = group if group.size <= length else unit.fit(group, length, tokenizer.bos)
        if fitting is None:
            raise Fault(f"text {number} is longer than the {length} positions that the model knows")
        rows.append(fitting)
    laid = [lay([shift(group.members[0])], length, tokenizer.pad) for group in rows]
    batch = {name: np.stack([row[name] for row in laid]) for name in laid[0]}
    return batch | unit.extras([[group] for group in rows])


def _asked(row: Row, kind: Kind) -> Row:
    """The row with labels that nobody looks at, wherever one is wanted."""
    if kind == "sequence":
        return {**row, "label": 0}
    if kind == "token":
        return {**row, "labels": [0] * len(row["tokens"])}
    return {**row, "start": 0, "end": len(row["context"])}
