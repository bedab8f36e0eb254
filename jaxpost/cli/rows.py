# SPDX-License-Identifier: Apache-2.0
"""The verb for data: what a run would learn from, shown and counted before it runs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from jaxpost.cli.configured import configured
from jaxpost.cli.terminal import escaped, status
from jaxpost.cli.training import config_name
from jaxpost.faults import Fault, nearest


def data(arguments: list[str]) -> None:
    """show | stats CONFIG [--field value ...]: print rendered examples with the trained tokens marked, or count."""
    verbs = {"show": _show, "stats": _stats}
    verb = arguments[0] if arguments else ""
    if verb not in verbs:
        asked = f"; {nearest(verb, verbs)}" if verb else ""
        raise Fault(f"say what to do with the data: jaxpost data show CONFIG, or jaxpost data stats CONFIG{asked}")
    name, rest = config_name(f"data {verb}", arguments[1:])
    config = configured(name, rest, f"jaxpost data {verb} {name}")
    if not hasattr(config, "data"):
        raise Fault(
            "a run of several stages has no rows of its own; look at what its stages wrote, in their directories"
        )
    console = Console(highlight=False)
    for shown in verbs[verb](config):
        console.print(shown, soft_wrap=True)
        console.print()


def _show(config: Any) -> Iterator[Any]:
    """Five rows, in the order in which the run reads them."""
    from jaxpost.data.batches.order import Order
    from jaxpost.data.show import show
    from jaxpost.data.show_pairs import show_compared
    from jaxpost.data.stats import UNITS, kind_of
    from jaxpost.recipes import base
    from jaxpost.recipes.assembly import reserving

    tokenizer = reserving(base.tokenizer_of(config.model), config.delta)
    rows = config.data.training(config.train.seed)
    order, columns = Order(len(rows), config.train.seed), config.data.columns
    if hasattr(config, "rollout"):
        yield from _prompts([rows[order(n)[1]] for n in range(min(5, len(rows)))], tokenizer, columns, config.rollout)
        return
    batches = config.batches
    for n in range(min(5, len(rows))):
        row = [rows[order(n)[1]]]
        if (kind := kind_of(row, columns)) == "tokens":
            yield f"{len(row[0].ids)} token ids\n{escaped(tokenizer.decode(row[0].ids))}"
        elif kind in UNITS:
            yield show_compared(row[0], tokenizer, columns, batches.seq_len)
        else:
            yield from show(row, tokenizer, 1, None, batches.train_on, columns, batches.seq_len)


def _prompts(rows: Sequence[Any], tokenizer: Any, columns: Any, rollout: Any) -> Iterator[Text]:
    """What a policy is asked, and what a reward may know besides."""
    from jaxpost.recipes.rollouts.prompts import request

    for row in rows:
        asked = request(row, tokenizer, columns)
        known = "  ".join(f"{name} {value!r:.60}" for name, value in asked.row.items() if name != "prompt")
        room = (
            ""
            if len(asked.ids) <= rollout.prompt_tokens
            else f", more than the {rollout.prompt_tokens} there is room for"
        )
        yield Text(asked.text).append(f"\n{len(asked.ids)} tokens{room}", "dim").append(f"\n{known}", "dim")


def _stats(config: Any) -> Iterator[Any]:
    """What a run's rows are, after cleaning, and what becomes of them in batches."""
    if hasattr(config, "rollout"):
        raise Fault("data stats counts rows that are learned from, and this run learns from answers it samples to "
                    "prompts; data show shows those")  # fmt: skip
    from jaxpost.data.batches.loader import Loader, Single
    from jaxpost.data.batches.packing import Group
    from jaxpost.data.stats import as_groups, gather, histogram, table, unit_of
    from jaxpost.recipes import base
    from jaxpost.recipes.assembly import reserving
    from jaxpost.recipes.prepared import behind, prepared
    from jaxpost.train.progress import track

    aside, columns, batches = Console(stderr=True), config.data.columns, config.batches

    def shown(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        return track(items, total, what, aside)

    with status("reading the rows"):
        tokenizer = reserving(base.tokenizer_of(config.model), config.delta)
        rows = config.data.training(config.train.seed)
        unit = unit_of(rows, columns)
    train_on = batches.train_on if isinstance(unit, Single) else "completion"
    ready = prepared(rows, tokenizer, replace(batches, train_on=train_on), columns, None, aside, unit)
    groups = as_groups(ready, unit, tokenizer, columns, train_on, shown)

    def loader(groups: Sequence[Group]) -> Loader:
        return Loader(
            groups,
            tokenizer,
            batches.rows,
            batches.seq_len,
            batches.packing,
            config.train.seed,
            epochs=1,
            overlong=batches.overlong,
            unit=unit,
        )

    found = gather(behind(ready), groups, loader, columns, shown)
    yield table(found)
    yield histogram(found)
