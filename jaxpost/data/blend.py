# SPDX-License-Identifier: Apache-2.0
"""Rows of several sources as one sequence, in exact proportions."""

import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from jaxpost.data.batches.order import Order
from jaxpost.data.mixtures import Proportional, Weighting, quotas
from jaxpost.data.rows.views import place_of
from jaxpost.data.sources.record import files_of
from jaxpost.faults import Fault


@dataclass(frozen=True)
class Blend(Sequence[Any]):
    """Rows of named sources; the same index gives the same row in every process.

    An epoch holds `size` rows (by default as many as the sources have, each counted up to the weighting's cap), source
    after source: whoever reads it shuffles. The next epoch goes on in each source, in its seeded order, where the one
    before stopped: a source that is cut short shows other rows, one that is stretched shows all of them equally often.
    """

    sources: Mapping[str, Sequence[Any]]
    weighting: Weighting = Proportional(cap=None)
    seed: int = 0
    size: int | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise Fault("a mixture needs a source, one at least")
        for name, rows in self.sources.items():
            if not len(rows):
                raise Fault(f"the source {name!r} of a mixture has no rows")
        if self.size is not None and self.size < 1:
            raise Fault(f"a mixture's size must be at least 1, not {self.size}")

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for rows in self.sources.values() for file in files_of(rows))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        return self.at(0, range(len(self))[index])

    def at(self, epoch: int, index: int) -> Any:
        """The row at an index of an epoch."""
        name, row = self.pick(epoch, index)
        return self.sources[name][row]

    def place_of(self, index: int, epoch: int = 0) -> str:
        name, row = self.pick(epoch, index)
        return place_of(self.sources[name], 0, row)

    def pick(self, epoch: int, index: int) -> tuple[str, int]:
        """Which row of which source that is."""
        number = bisect_right(self._ends, index)
        start = self._ends[number - 1] if number else 0
        name = tuple(self.sources)[number]
        return name, self._orders[number](epoch * (self._ends[number] - start) + index - start)[1]

    @cached_property
    def quotas(self) -> dict[str, int]:
        """How many rows of each source an epoch holds."""
        sizes = {name: len(rows) for name, rows in self.sources.items()}
        weights = self.weighting.weights(sizes)
        cap = getattr(self.weighting, "cap", None)
        size = self.size or sum(min(n, cap or n) for name, n in sizes.items() if weights[name] > 0)
        return dict(zip(sizes, quotas([weights[name] for name in sizes], size), strict=True))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.quotas.values()))

    @cached_property
    def _orders(self) -> list[Order]:
        return [Order(len(rows), (self.seed, zlib.crc32(name.encode()))) for name, rows in self.sources.items()]
