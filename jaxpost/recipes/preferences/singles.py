# SPDX-License-Identifier: Apache-2.0
"""A corpus of single answers, whatever its rows compare."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxpost.data.blend import Blend
from jaxpost.data.rows.judged import Judged, Mismatched


@dataclass(frozen=True)
class Single:
    """The rows of a corpus as single answers, beside answers to other prompts where they are asked for."""

    corpus: Any
    mismatched: bool

    @property
    def columns(self) -> None:
        return None

    def training(self, seed: int) -> Sequence[Any]:
        return self._single(self.corpus.training(seed))

    def held_out(self, seed: int) -> Sequence[Any]:
        return self._single(self.corpus.held_out(seed))

    def _single(self, rows: Sequence[Any]) -> Sequence[Any]:
        if isinstance(rows, Blend):
            return replace(rows, sources={name: self._single(part) for name, part in rows.sources.items()})
        found = Judged(rows, self.corpus.columns)
        return Mismatched(found) if self.mismatched else found
