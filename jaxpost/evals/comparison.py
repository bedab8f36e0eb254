# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side in one page: the settings in which they differ, and their curves together."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpost.evals import curves, panels, report, tradeoff
from jaxpost.evals.report import CONFIG, settings
from jaxpost.faults import Fault
from jaxpost.train import metrics

FILE = "comparison.html"
APART = ("run", "train.seed")  # runs that differ in these alone are repetitions of one


def compare(runs: Sequence[Path], out: Path | None = None) -> Path:
    """A page of two runs or more, in the first one's directory or at `out`, a file or a directory that is there. What
    is no run, or one that has measured nothing, is a `Fault`."""
    for i, run in enumerate(runs):
        if any(run.resolve() == other.resolve() for other in runs[:i]):
            raise Fault(f"{run} is named twice; runs are compared with other runs")
        if not metrics.read(run):
            kind = "no run directory" if not (run / CONFIG).is_file() else "a run that has measured nothing yet"
            raise Fault(f"{run} is {kind}: it has no {metrics.LINES} with a whole line, so there is nothing to compare")
    if len(runs) < 2:
        raise Fault("one run is nothing to compare; name two at least")
    return report.write_page(place(out, runs[0], FILE), "comparison.html.j2", view(runs))


def place(out: Path | None, run: Path, name: str) -> Path:
    """Where a page is written."""
    path = (run if out is None else out) / name if out is None or out.is_dir() else out
    if not path.parent.is_dir():
        raise Fault(f"--out {path}: there is no directory {path.parent}; make it, or write elsewhere")
    return path


def recorded(run: Path) -> dict[str, Any]:
    """A run's config, as far as it can be read."""
    return report.config_of(run, []) or {}


def view(runs: Sequence[Path]) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    names = distinct(runs)
    configs = {name: recorded(run) for name, run in zip(names, runs, strict=True)}
    records = {name: metrics.read(run) for name, run in zip(names, runs, strict=True)}
    groups, varied = grouped(configs)
    flat = {name: dict(settings(config)) for name, config in configs.items()}
    colours = {name: colour for name, (colour, _) in groups.items()}
    called = dict(groups.values())
    found = [tradeoff.path_of(name, some, configs[name]) for name, some in records.items()]
    drawn = panels.compared(records, colours)
    return {
        "names": names,
        "settings": varied,
        "rows": [
            {
                "name": name,
                "look": f"s{colours[name] % curves.COLOURS}",
                "values": [flat[name].get(setting, "") for setting in varied],
                "steps": f"{records[name][-1]['step']:,}",
            }
            for name in names
        ],
        "tradeoff": report.against([path for path in found if path], groups),
        "figures": [report.figure(panel, called) for panel in drawn[: report.MOST_PANELS]],
        "not_drawn": [panel.title for panel in drawn[report.MOST_PANELS :]],
    }


def distinct(runs: Sequence[Path]) -> list[str]:
    """The names of directories, with as much of what stands before them as tells them apart."""
    parts = [run.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(some[-count:]) for some in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def grouped(configs: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """For every run a colour and what that stands for, the same for repetitions of a run; and the settings in which
    runs differ."""
    flat = {name: dict(settings(config)) for name, config in configs.items()}
    every = dict.fromkeys(setting for one in flat.values() for setting in one)
    varied = [s for s in every if s != "run" and len({one.get(s) for one in flat.values()}) > 1]
    told = [setting for setting in varied if setting not in APART]
    members: dict[str, list[str]] = {}
    for name, one in flat.items():
        # Runs without a config cannot be known to be alike.
        key = json.dumps([one.get(setting) for setting in told]) if configs[name] else name
        members.setdefault(key, []).append(name)
    groups: dict[str, tuple[int, str]] = {}
    for colour, some in enumerate(members.values()):
        label = some[0]
        if len(some) > 1:
            said = ", ".join(f"{setting} {flat[some[0]].get(setting, 'none')}" for setting in told) or "the same run"
            label = f"{said} ({len(some)} runs)"
        groups |= {name: (colour, label) for name in some}
    return groups, varied
