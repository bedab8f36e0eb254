# SPDX-License-Identifier: Apache-2.0
"""One table: what the model could do before training and what it can do after."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxpost.faults import Fault
from jaxpost.train.metrics import write_json

FILE = "evals.json"
GROUPS = ("trained tasks, unseen examples", "unseen tasks", "unseen clusters")
LABELS = {"rank": "rank of options", "exact": "exact match", "rouge": "ROUGE-L"}
VERDICTS = {
    "no clear change": "Not clearly improved (gain within its margin)",
    "worse": "Worse than before",
    "not measured": "Not measured",
}


@dataclass(frozen=True)
class Row:
    """One task's scores, between 0 and 1, higher is better, over `count` examples that training never saw.

    A score that could not be computed is NaN. `metric` says how answers were judged.
    """

    group: str
    cluster: str
    task: str
    metric: str
    before: float
    after: float
    count: int

    @property
    def margin(self) -> float:
        """Half the width of the gain's 95 % interval, as a difference of two independent proportions with one success
        and one failure added to each (Agresti and Caffo 2000, https://doi.org/10.1080/00031305.2000.10474560).

        Both scores are of the same examples, and ROUGE varies less than a coin, so the true margin is smaller.
        """
        adjusted = [(score * self.count + 1) / (self.count + 2) for score in (self.before, self.after)]
        return 1.96 * math.sqrt(sum(p * (1 - p) for p in adjusted) / (self.count + 2))


@dataclass(frozen=True)
class Mean:
    """The mean over tasks (each counts the same) of one cluster of a group, or of the whole group: cluster is None."""

    group: str
    cluster: str | None
    tasks: int
    count: int
    before: float
    after: float
    margin: float

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def percent(self) -> float | None:
        """The gain relative to the score before, which must not be 0 for it."""
        return 100 * self.gain / self.before if self.before > 0 and math.isfinite(self.gain) else None

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the gain exceeds its margin, else `no clear change`."""
        if not math.isfinite(self.gain):
            return "not measured"
        return "no clear change" if abs(self.gain) <= self.margin else "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Evaluation:
    """All rows, and what has to be said beside them (tasks left out and why, prompts cut short)."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    def summary(self) -> list[Mean]:
        """Of each group its own mean, then those of its clusters. Rows without scores do not count."""
        means = []
        for group in in_order(row.group for row in self.rows):
            rows = [row for row in self.rows if row.group == group]
            means.append(mean(rows, group, None))
            for cluster in in_order(row.cluster for row in rows):
                means.append(mean([row for row in rows if row.cluster == cluster], group, cluster))
        return means

    def save(self, run_dir: str | Path) -> Path:
        """RUN/evals.json: `rows`, `summary` with gains, `notes`; what is not a number is null."""
        summary = [dataclasses.asdict(m) | {"gain": m.gain, "percent": m.percent, "verdict": m.verdict}
                   for m in self.summary()]  # fmt: skip
        content = {"rows": [dataclasses.asdict(row) for row in self.rows], "summary": summary, "notes": self.notes}
        path = Path(run_dir) / FILE
        write_json(path, _nulls(content))
        return path

    @classmethod
    def load(cls, run_dir: str | Path) -> "Evaluation":
        """What `save` wrote."""
        path = Path(run_dir) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(Row(**_nans(row)) for row in content["rows"]), tuple(content["notes"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Fault(
                f"{path}: not a before/after table ({type(error).__name__}: {error}); "
                "evaluate the run again to write it afresh"
            ) from None


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: known groups in the order of how far they are from training, others as they come."""
    found = list(dict.fromkeys(names))
    return sorted(found, key=lambda name: GROUPS.index(name) if name in GROUPS else len(GROUPS))


def mean(rows: Sequence[Row], group: str, cluster: str | None) -> Mean:
    """The mean of some rows' scores; its margin follows from theirs, which are independent."""
    scored = [row for row in rows if math.isfinite(row.before) and math.isfinite(row.after)]
    tasks = len({row.task for row in scored})
    if not scored:
        return Mean(group, cluster, 0, 0, math.nan, math.nan, math.nan)
    before, after = (sum(getattr(row, name) for row in scored) / len(scored) for name in ("before", "after"))
    margin = math.sqrt(sum(row.margin**2 for row in scored)) / len(scored)
    return Mean(group, cluster, tasks, sum(row.count for row in scored), before, after, margin)


def render(evaluation: Evaluation, tasks: bool = False) -> Group:
    """The table for a terminal of 80 columns: groups and clusters, every task too if asked for (then 100 columns show
    all), and below it in words what did not improve."""
    table = Table(box=None, pad_edge=False, header_style="dim", title="Before and after", title_style="bold",
                  title_justify="left")  # fmt: skip
    table.add_column("cluster (tasks)")
    if tasks:
        table.add_column("", style="dim", overflow="ellipsis", no_wrap=True)
    for name, width in (("examples", 8), ("before", 6), ("after", 6), ("gain", 6), ("±", 5), ("in %", 6)):
        table.add_column(name, justify="right", min_width=width, no_wrap=True)
    for m in evaluation.summary():
        if m.cluster is None and table.row_count:
            table.add_row()
        name = Text(m.group, "bold") if m.cluster is None else Text(f"  {m.cluster} ").append(f"({m.tasks})", "dim")
        table.add_row(name, *[""] * tasks, *_cells(m))
        rows = [row for row in evaluation.rows if (row.group, row.cluster) == (m.group, m.cluster)]
        for row in rows if tasks else ():
            label = LABELS.get(row.metric, row.metric)
            table.add_row(Text(f"    {row.task}", "dim"), label, *_cells(mean([row], row.group, row.cluster)))
    return Group(table, Text(), *(Text(line) for line in statements(evaluation)))


def statements(evaluation: Evaluation) -> list[str]:
    """What the table says in words: how it was measured, what did not improve, and its notes."""
    if not evaluation.rows:
        return ["Nothing was evaluated.", *evaluation.notes]
    means = evaluation.summary()
    judged = Counter(LABELS.get(row.metric, row.metric) for row in evaluation.rows)
    by = ", ".join(f"{label} ({number})" for label, number in judged.most_common())
    lines = [
        f"Scores are in percent, each the mean over its tasks, judged by {by}; "
        f"{sum(m.count for m in means if m.cluster is None):,} examples, none of them seen in training. "
        "± is the 95 % margin of the gain."
    ]
    for verdict, opening in VERDICTS.items():
        found = [m for m in means if m.verdict == verdict]
        parts = [f"{group}: {', '.join(_named(m) for m in found if m.group == group)}"
                 for group in dict.fromkeys(m.group for m in found)]  # fmt: skip
        lines += [f"{opening}: {'; '.join(parts)}."] if parts else []
    return [*lines, *evaluation.notes]


def _named(m: Mean) -> str:
    gain = f" ({points(m.gain, signed=True)})" if math.isfinite(m.gain) else ""
    return f"{m.cluster or 'as a whole'}{gain}"


def points(score: float, signed: bool = False) -> str:
    """A score or a gain in points of a hundred: `41.7`, `+3.0`, `−1.2`; a dash where there is none."""
    if not math.isfinite(score):
        return "–"
    text = f"{100 * score:+.1f}" if signed else f"{100 * score:.1f}"
    return text.replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def relative(m: Mean) -> str:
    """The gain relative to the score before: `+67 %`, or a dash where that was 0."""
    return "–" if m.percent is None else f"{m.percent:+,.0f} %".replace("-", "−")


def _cells(m: Mean) -> list[Text]:
    style = {"better": "green", "worse": "red"}.get(m.verdict, "dim")
    return [
        Text(f"{m.count:,}"),
        Text(points(m.before)),
        Text(points(m.after)),
        Text(points(m.gain, signed=True), style),
        Text(points(m.margin), "dim"),
        Text(relative(m).removesuffix(" %"), style),
    ]


def _nans(row: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in row.items()}


def _nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nulls(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
