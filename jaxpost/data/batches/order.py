# SPDX-License-Identifier: Apache-2.0
"""A seeded order over rows, different in every pass, of which any place can be asked for by itself."""

import numpy as np

from jaxpost.faults import Fault


class Order:
    """Which row the n-th of an endless stream over `rows` rows is. `seed=None` keeps the rows as they lie.

    Every pass is a permutation (Grain's: nothing is stored, so neither size nor position costs memory).
    """

    def __init__(self, rows: int, seed: int | tuple[int, ...] | None):
        if isinstance(seed, int) and seed < 0:
            raise Fault(f"a seed must not be negative: {seed}")
        self._rows, self._seed = rows, (seed,) if isinstance(seed, int) else seed
        self._pass_seed = -1, 0

    def __call__(self, n: int) -> tuple[int, int]:
        """The pass (from 0) and the row."""
        number, index = divmod(n, self._rows)
        if self._seed is None:
            return number, index
        from grain.experimental import index_shuffle  # here, because it brings jax: most of a second

        if self._pass_seed[0] != number:
            # Hashed, or else pass 1 of seed 0 would be pass 0 of seed 1.
            self._pass_seed = number, int(np.random.SeedSequence([*self._seed, number]).generate_state(1)[0])
        return number, index_shuffle(index, max_index=self._rows - 1, seed=self._pass_seed[1], rounds=4)
