# SPDX-License-Identifier: Apache-2.0
"""A run as one HTML page that needs nothing else: no script, no network, no other file."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import jaxpost
from jaxpost.evals import curves, table, tradeoff
from jaxpost.evals.curves import Panel, Series, number
from jaxpost.evals.panels import panels_of
from jaxpost.evals.text import exact
from jaxpost.faults import Fault
from jaxpost.train import metrics
from jaxpost.train.progress import duration

FILE, SAMPLES, CONFIG = "report.html", "generations.json", "config.json"
MOST_SAMPLES, MOST_CHARACTERS, MOST_PANELS = 24, 4000, 32


def write_report(run_dir: str | Path, out: Path | None = None) -> Path:
    """A page of whatever the run directory holds, at RUN/report.html or `out`; what it lacks or cannot be read is named
    in the page.

    Generations are `[{"prompt": .., "before": .., "after": ..}, ...]`, with `target`, `task` and `cluster` if known.
    Raises `Fault` where there is no run at all.
    """
    run_dir = Path(run_dir)
    names = (metrics.LINES, table.FILE, SAMPLES, CONFIG)
    if not any((run_dir / name).is_file() for name in names):
        raise Fault(f"{run_dir} is no run directory: it has none of {', '.join(names)}")
    return write_page(out or run_dir / FILE, "report.html.j2", view(run_dir))


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """A page made of a template; the path it has."""
    page = _environment().get_template(template).render({**values, "version": jaxpost.__version__})
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise Fault(f"report: cannot write {path} ({error.strerror or error})") from error
    return path


def view(run_dir: Path) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    lacking: list[str] = []
    records = metrics.read(run_dir)
    panels = panels_of(records)
    changing = [panel for panel in panels if not _constant(panel)]
    if not records:
        lacking.append(f"curves: there is no {metrics.LINES} with a whole line")
    evaluation = None
    if (run_dir / table.FILE).is_file():
        try:
            evaluation = table.Evaluation.load(run_dir)
        except Fault as fault:
            lacking.append(str(fault))
    else:
        lacking.append(f"the before/after table: there is no {table.FILE}, which evaluating the run writes")
    config = config_of(run_dir, lacking)
    path = tradeoff.path_of(run_dir.resolve().name, records, config)
    facts = _json(run_dir / metrics.FACTS, dict, lacking, "what the run ran on")
    samples = _json(run_dir / SAMPLES, list, lacking, "sample generations") or []
    times = [record["time"] for record in records if isinstance(record.get("time"), int | float)]
    return {
        "name": run_dir.resolve().name,
        "when": _when(times),
        "facts": facts_of(records, times, facts or {}),
        "evaluation": None if evaluation is None else _evaluation(evaluation),
        "tradeoff": against([path] if path else []),
        "figures": [figure(panel) for panel in changing[:MOST_PANELS]],
        "not_drawn": [panel.title for panel in changing[MOST_PANELS:]],
        "constant": [f"{p.title} {p.show(p.series[0].values[0])}" for p in panels if p not in changing],
        "samples": [_sample(s) for s in samples[:MOST_SAMPLES] if isinstance(s, dict)],
        "samples_in_all": len(samples),
        "config": list(settings(config)) if config else [],
        "lacking": lacking,
    }


def facts_of(records: Sequence[Mapping[str, Any]], times: Sequence[float], facts: Mapping[str, Any]) -> list[tuple]:
    """Name and value of what there is to know in short: from the metrics, then what the run says of itself."""
    known: dict[str, Any] = {}
    if records:
        known["steps"] = records[-1]["step"]
    if len(times) > 1:
        known["from first to last record"] = duration(max(times) - min(times))
    shown = known | {str(name): value for name, value in facts.items()}
    return [(name.replace("_", " "), _plain(value)) for name, value in shown.items()]


def settings(value: Any, name: str = "") -> Any:
    """A nested config as dotted names and values, one a line."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from settings(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _constant(panel: Panel) -> bool:
    """Whether there is nothing to see in a drawing; NaN, being equal to nothing, is something to see."""
    first = panel.series[0].values[0]
    return all(value == first for line in panel.series for value in line.values)


def figure(panel: Panel, groups: Mapping[int, str] | None = None) -> dict[str, Any]:
    """A panel as the template wants it. With `groups`, names by colours, all lines of a colour are told of at once."""
    bad = [
        f"{line.name} not finite at {len(line.bad):,} of {len(line.steps):,} steps, first at {line.bad[0]:,}"
        for line in panel.series
        if line.bad
    ]
    far_off = ""
    if far := curves.beyond(panel):
        ends = dict.fromkeys(panel.show(value) for value in (far[0], far[-1]))
        far_off = f"{len(far):,} off the scale ({' to '.join(ends)})"
    lines = enumerate(panel.series)
    latest = [{"look": panel.look(i), "name": line.name, "value": _last([line], panel)} for i, line in lines]
    if groups is not None:
        members = {colour: [line for line in panel.series if line.colour == colour] for colour in groups}
        latest = [
            {"look": f"s{colour % curves.COLOURS}", "name": groups[colour], "value": _last(some, panel)}
            for colour, some in members.items()
            if some
        ]
    return {"title": panel.title, "latest": latest, "bad": bad, "far_off": far_off, "svg": Markup(curves.draw(panel))}


def against(paths: Sequence[tradeoff.Path], groups: Mapping[str, tuple[int, str]] | None = None) -> dict[str, Any]:
    """Rewards against KL, of one run or of several, whose colours and names are in `groups`, and the numbers at the
    places that matter. Empty if there is nothing to see."""
    colours = None if groups is None else {name: colour for name, (colour, _) in groups.items()}
    panel = tradeoff.panel(paths, colours)
    if panel is None:
        return {}
    spans, weights = tradeoff.spans(paths), {name: w for path in paths for name, w in path.weights.items()}
    sources = []
    for i, (name, (low, high)) in enumerate(spans.items()):
        colour = f"s{i % curves.COLOURS}" if groups is None else "plain"
        learned = "" if name not in weights else "only watched" if weights[name] == 0 else "learned from"
        look = f"{colour} d{tradeoff.dash_of(name, paths)}"
        sources.append({"name": name, "look": look, "learned": learned, "low": number(low), "high": number(high)})
    drawn = dict(groups[path.name] for path in paths) if groups else {}
    places = {path.name: [tradeoff.moment(path, at) for at in (0, path.best, -1)] for path in paths}
    return {
        "svg": Markup(curves.draw(panel)),
        "sources": sources,
        "groups": [{"look": f"s{colour % curves.COLOURS}", "name": name} for colour, name in drawn.items()],
        "highest": next(iter(paths[0].watched or spans)),
        "held_out": all(path.held_out for path in paths),
        "rows": [
            {
                "name": name,
                "moments": [
                    {
                        "step": f"{one.step:,}",
                        "kl": f"{one.kl:.3g}",
                        "rewards": [number(one.rewards[source]) if source in one.rewards else "" for source in spans],
                    }
                    for one in moments
                ],
            }
            for name, moments in places.items()
        ],
    }


def _last(lines: Sequence[Series], panel: Panel) -> str:
    """Where a line ends, or several in the mean; where its smoothed course does, if it is a noisy one."""
    finite = [line.finite for line in lines if line.finite]
    if not finite:
        return "no finite value"
    noisy = any(map(curves.noisy, finite))
    ends = [(curves.smooth(points) if curves.noisy(points) else points)[-1][1] for points in finite]
    return f"{'≈ ' if noisy or len(ends) > 1 else ''}{panel.show(sum(ends) / len(ends))}"


def _evaluation(evaluation: table.Evaluation) -> dict[str, Any]:
    means = evaluation.summary()
    rows = [(table.mean([row], row.group, row.cluster), row) for row in evaluation.rows]
    return {
        "groups": [
            {
                "mean": _scores(group),
                "name": group.group,
                "clusters": [
                    {
                        "name": m.cluster,
                        "mean": _scores(m),
                        "tasks": [
                            {"name": row.task, "metric": table.LABELS.get(row.metric, row.metric), "mean": _scores(one)}
                            for one, row in rows
                            if (row.group, row.cluster) == (m.group, m.cluster)
                        ],
                    }
                    for m in means
                    if m.group == group.group and m.cluster is not None
                ],
            }
            for group in means
            if group.cluster is None
        ],
        "statements": table.statements(evaluation),
    }


def _scores(m: table.Mean) -> dict[str, Any]:
    measured = math.isfinite(m.gain)
    return {
        "tasks": m.tasks,
        "count": f"{m.count:,}",
        "before": table.points(m.before),
        "after": table.points(m.after),
        "gain": table.points(m.gain, signed=True),
        "margin": table.points(m.margin),
        "percent": table.relative(m),
        "verdict": m.verdict,
        "bar": (round(100 * m.before, 1), round(100 * m.after, 1)) if measured else None,
    }


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: sample.get(name) for name in ("prompt", "before", "after", "target")}
    shown = {name: None if text is None else _clipped(str(text)) for name, text in texts.items()}
    right = {f"{name}_right": _as_expected(texts[name], texts["target"]) for name in ("before", "after")}
    where = ", ".join(str(sample[name]) for name in ("cluster", "task") if sample.get(name))
    return shown | right | {"where": where}


def _as_expected(answer: Any, target: Any) -> bool:
    return answer is not None and target is not None and exact(str(answer), str(target)) == 1


def _clipped(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … ({len(text):,} characters in all)"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if isinstance(value, int) else number(value)


def _when(times: Sequence[float]) -> str:
    if not times:
        return ""
    begin, end = (datetime.fromtimestamp(60 * (t // 60), UTC) for t in (min(times), max(times)))
    if begin == end:
        return f"{begin.day} {begin:%B %Y, %H:%M} UTC"
    last = f"{end:%H:%M}" if begin.date() == end.date() else f"{end.day} {end:%B %Y, %H:%M}"
    return f"{begin.day} {begin:%B %Y, %H:%M} to {last} UTC"


def config_of(run_dir: Path, lacking: list[str]) -> dict[str, Any] | None:
    """A run's config as JSON. Why there is none is added to what is lacking."""
    return _json(run_dir / CONFIG, dict, lacking, "the configuration")


def _json(path: Path, kind: type, lacking: list[str], what: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        lacking.append(f"{what}: there is no {path.name}")
        return None
    except (OSError, ValueError) as error:
        lacking.append(f"{what}: {path.name} cannot be read ({error})")
        return None
    if not isinstance(content, kind):
        lacking.append(f"{what}: {path.name} holds no {'list' if kind is list else 'object'}")
        return None
    return content


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: resources.files("jaxpost.evals").joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
