# SPDX-License-Identifier: Apache-2.0
"""What a reward model has learned, by held-out rows: whom it scores higher, and how far its confidence is to be
believed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxpost.arrays import Array, Batch, Tree
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.evals import preferences, report, table
from jaxpost.recipes import feed
from jaxpost.recipes.preferences.judgements import Judged
from jaxpost.recipes.telling import console, reading, say
from jaxpost.train.metrics import write_json

FILE = "rewards.json"


@dataclass(frozen=True)
class Rated:
    """The review of one run. A fresh head knows nothing, so nothing is measured before."""

    config: Any
    directory: Path
    data: feed.Data
    mesh: Mesh
    rated: Callable[[Tree, Batch], tuple[Judged, Array]]

    def before(self, weights: Tree) -> None: ...

    def after(self, weights: Tree, tokenizer: Tokenizer) -> None:
        if not self.config.review.examples:
            return
        margins = reading(lambda: self._margins(weights), "measuring the held-out rows")
        told = preferences.calibration(margins)
        right = float(np.mean(np.where(margins == 0, 0.5, margins > 0))) if len(margins) else float("nan")
        found = {"accuracy": right, "margin": float(margins.mean()) if len(margins) else float("nan")}
        say(f"held out: accuracy {100 * right:.1f} %  margin {found['margin']:.3f}  ({len(margins):,} pairs)")
        if jax.process_index() == 0:
            console().print(preferences.reliability(told))
            write_json(self.directory / FILE, {**found, "pairs": len(margins), **preferences.summary(told)})
            table.Evaluation(self._rows(right, len(margins)), preferences.lines(told)).save(self.directory)
            say(f"report  {report.write_report(self.directory)}")

    def _rows(self, right: float, count: int) -> tuple[table.Row, ...]:
        """Beside what chance would do."""
        return (table.Row("held-out rows", "preferences", "told apart", "score", 0.5, right, count),)

    def _margins(self, weights: Tree) -> np.ndarray:
        """Of held-out pairs by how much the better answer is scored higher; of single answers, by how much they are on
        the right side."""

        @jax.jit
        def measure(weights: Tree, batch: Batch) -> tuple[Array, Array]:
            judged, _ = self.rated(weights, batch)
            return jax.lax.with_sharding_constraint((judged.margins, judged.compared), P())

        loader, found, count = self.data.held_out(), [], 0
        while count < self.config.review.examples:
            try:
                batch = feed.place(loader.next(), self.mesh)
            except StopIteration:
                break
            margins, compared = (np.asarray(x) for x in measure(weights, batch))
            found.append(margins[compared > 0])
            count += len(found[-1])
        return np.concatenate(found) if found else np.zeros(0)
