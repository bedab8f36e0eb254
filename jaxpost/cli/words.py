# SPDX-License-Identifier: Apache-2.0
"""The verb that reads a learned prompt."""

import tyro

from jaxpost.cli.terminal import escaped, status
from jaxpost.faults import Fault

Positional = tyro.conf.Positional


def words(run: Positional[str], count: int = 5, best: bool = False) -> None:
    """Show the words nearest to each row of a prompt that a run learned, with the cosines of the angles between."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from jaxpost.delta.prompt import learned, nearest
    from jaxpost.recipes import trained

    if count < 1:
        raise Fault(f"--count is {count}; give at least 1")
    with status(f"reading {run}"):
        model = trained.read(run, best)
        ids, cosines = map(np.asarray, nearest(learned(model.delta, run), model.base["embed"], count))
    table = Table("place", "nearest words", box=None, pad_edge=False)
    for place, (row, near) in enumerate(zip(ids.tolist(), cosines.tolist(), strict=True), 1):
        told = (f"{escaped(repr(model.tokenizer.piece(i)))} {c:.2f}" for i, c in zip(row, near, strict=True))
        table.add_row(str(place), "  ".join(told))
    Console(highlight=False).print(table)
