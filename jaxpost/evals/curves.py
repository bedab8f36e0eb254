# SPDX-License-Identifier: Apache-2.0
"""Curves of a run as inline SVG: no script, no fonts, no colours of its own (the page's style sheet has those)."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 26
CAPTION = 20  # below the ticks of an axis that has a name
MOST_POINTS = 400  # of a drawn line: more than that a screen does not show
MOST_HOVERS = 90
SMOOTH_FROM = 60  # points from which on a smoothed line is drawn over the raw one
COLOURS, DASHES = 8, 3  # what the style sheet has


@dataclass(frozen=True)
class Series:
    """One line: its name and its values (not finite ones included) by step, in order of steps.

    `colour` and `dash` are numbers of the style sheet's; a line that is given no colour has one of its own. On an axis
    that has no steps, `across` are its places, and `said` is what a pointer shows of each.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    colour: int | None = None
    dash: int = 0
    across: tuple[float, ...] = ()
    said: tuple[str, ...] = ()

    @property
    def finite(self) -> list[tuple[int, float]]:
        return [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]

    @property
    def bad(self) -> list[int]:
        """Steps whose value is not finite."""
        return [s for s, v in zip(self.steps, self.values, strict=True) if not math.isfinite(v)]


@dataclass(frozen=True)
class Across:
    """An x axis that has no steps, from 0: what is written below it. `root` lays values out by their square roots, so
    that small ones have room."""

    caption: str
    root: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines that share their axes. `show` writes a value as people read it. `across`: the x axis, if it has no steps;
    a line then goes from point to point in order of its steps, be it back."""

    title: str
    series: tuple[Series, ...]
    show: Callable[[float], str]
    from_zero: bool = False
    across: Across | None = None
    width: int = WIDTH
    height: int = HEIGHT

    def look(self, place: int) -> str:
        """The classes that a line and what belongs to it have in the style sheet."""
        series = self.series[place]
        colour = (place if series.colour is None else series.colour) % COLOURS
        return f"s{colour} d{series.dash % DASHES}" if series.dash else f"s{colour}"


def number(value: float) -> str:
    """About four digits, short where the number is large or small: `2.314`, `12,346`, `1.20M`, `3e-5`."""
    size = abs(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if size >= 1e15 or 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for limit, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if size >= limit:
            return f"{value / limit:.2f}{sign}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    """A share: `41.7 %`, `60 %`."""
    return f"{100 * value:.1f}".removesuffix(".0") + " %" if math.isfinite(value) else number(value)


def ticks(low: float, high: float, most: float = 5.8, least: float = 0.0) -> list[float]:
    """The round numbers within the range that are 1, 2 or 5 times a power of ten apart, the closest set of which the
    range holds at most `most` gaps, none smaller than `least`."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * times for times in (1, 2, 5, 10) if high - low <= power * times * most)
    step = max(step, least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12 - math.floor(math.log10(step))) for k in range(first, last + 1)]


def smooth(points: Sequence[tuple[int, float]], most: int = 90) -> list[tuple[int, float]]:
    """The course of a noisy line: medians of stretches of at least eight points, each then averaged with its
    neighbours. Medians, because one spike would lift a mean for long."""
    stretches = max(1, min(most, len(points) // 8))
    cuts = [i * len(points) // stretches for i in range(stretches + 1)]
    parts = [points[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    steps = [part[len(part) // 2][0] for part in parts]
    values = [statistics.median(value for _, value in part) for part in parts]
    for _ in range(2):
        # Lines start steep and end level: before the first they go on as they began, after the last they stay.
        padded = [2 * values[0] - values[min(1, stretches - 1)], *values, values[-1]]
        values = [(a + 2 * b + c) / 4 for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)]
    return list(zip(steps, values, strict=True))


def noisy(points: Sequence[tuple[int, float]]) -> bool:
    """Whether a line goes up and down so much that its course is hard to see: it travels many times its range, rare
    spikes apart."""
    if len(points) < SMOOTH_FROM:
        return False
    low, high = _range([value for _, value in points])
    values = [min(max(value, low), high) for _, value in points]
    return sum(abs(b - a) for a, b in zip(values, values[1:], strict=False)) > 6 * (high - low)


def beyond(panel: Panel) -> list[float]:
    """The values too far from all others for the axis, lowest first; they are drawn at its edge."""
    values = [value for series in panel.series for _, value in series.finite]
    low, high = _range(values, panel.from_zero)
    return sorted(value for value in values if not low <= value <= high)


def thin(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most so many points, of every stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    kept: set[tuple[int, float]] = set()
    stretches = most // 2
    for i in range(stretches):
        stretch = points[i * len(points) // stretches : (i + 1) * len(points) // stretches]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def draw(panel: Panel) -> str:
    """The panel as one `<svg>` element: axes, lines, and zones that show values where a pointer rests."""
    finite = [point for series in panel.series for point in series.finite]
    low, high = _range([value for _, value in finite], panel.from_zero)
    base = panel.height - BOTTOM - (CAPTION if panel.across else 0)
    y = _Axis(low, high, base, TOP)
    if panel.across:
        far = max((place for series in panel.series for place in series.across), default=1.0)
        x = _Axis(0, far or 1.0, LEFT, panel.width - RIGHT, panel.across.root)
        drawn = [part for i in range(len(panel.series)) for part in _course(panel, i, x, y)]
    else:
        steps = [step for series in panel.series for step in series.steps]
        begin, end = min(steps), max(steps)
        x = _Axis(0 if begin <= end / 20 else begin, end, LEFT, panel.width - RIGHT)
        drawn = [part for i in range(len(panel.series)) for part in _line(panel, i, x, y)]
        drawn += _hovers(panel, x, y)
    parts = [
        f'<svg viewBox="0 0 {panel.width} {panel.height}" role="img" aria-label="{escape(describe(panel))}">',
        *_grid(panel, x, y),
        *drawn,
        "</svg>",
    ]
    return "".join(parts)


def describe(panel: Panel) -> str:
    """The curve in words: first and last value of every line, its extreme, and what could not be drawn."""
    said = []
    for series in panel.series:
        finite, bad = series.finite, series.bad
        if panel.across and finite:
            ends = [(series.values[i], series.across[i]) for i in (0, -1)]
            words = (f"{panel.show(value)} at {number(place)}" for value, place in ends)
            said.append(f"{series.name} {', '.join(words)}")
        elif finite:
            (first, begin), (last, end) = finite[0], finite[-1]
            text = f"{series.name} {panel.show(begin)} at step {first:,}"
            said.append(text if last == first else f"{text}, {panel.show(end)} at step {last:,}")
        if bad:
            said.append(f"{series.name} not finite at {len(bad):,} of {len(series.steps):,} steps (first {bad[0]:,})")
    return f"{panel.title}: {'; '.join(said)}"


class _Axis:
    """From values to places in the drawing, by proportion or by that of their square roots."""

    def __init__(self, low: float, high: float, begin: float, end: float, root: bool = False):
        self.low, self.high = low, high if high > low else low + 1
        self.begin, self.end, self.root = begin, end, root
        self._scale = (end - begin) / self._laid(self.high)

    def __call__(self, value: float) -> float:
        at = min(max(value, self.low), self.high)
        return round(self.begin + self._laid(at) * self._scale, 1)

    def _laid(self, value: float) -> float:
        return math.sqrt(value - self.low) if self.root else value - self.low

    def ticks(self, most: float, least: float = 0.0) -> list[float]:
        """Round numbers; by roots, below the first of them also 1, 2 and 5 times powers of ten that have room."""
        if not self.root:
            return ticks(self.low, self.high, most, least)
        # The highest of n values that are equally far apart have 1 / 2n of the axis between them.
        room, kept = abs(self.end - self.begin) / (1.6 * most), ticks(self.low, self.high, 0.6 * most)
        power = math.floor(math.log10(self.high))
        fine = [times * 10.0**k for k in range(power, power - 4, -1) for times in (5, 2, 1)]
        first = kept[1] if len(kept) > 1 else self.high
        for value in (one for one in fine if one < first):
            if all(abs(self(value) - self(other)) >= room for other in kept):
                kept.append(value)
        return sorted(kept)


def _range(values: Sequence[float], from_zero: bool = False) -> tuple[float, float]:
    """What the y axis spans: all values, but for rare spikes (a warm-up step, an exploding gradient) that would press
    everything else flat; those are drawn at the edge, and their hover says how large they are."""
    if not values:
        return 0.0, 1.0
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= 50:
        common_low, common_high = ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]
        reach = 6.0 * (common_high - common_low)
        if reach > 0:
            low, high = max(low, common_low - reach), min(high, common_high + reach)
    if from_zero and low >= 0:
        low = 0.0
    room = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if low == 0 else low - room), high + room


def _grid(panel: Panel, x: _Axis, y: _Axis) -> Iterable[str]:
    marks, right = y.ticks(5.8), panel.width - RIGHT
    for value, label in zip(marks, _aligned([panel.show(mark) for mark in marks]), strict=True):
        at = y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>'
        yield f'<text class="tick" x="{LEFT - 7}" y="{at + 3.5}" text-anchor="end">{escape(label)}</text>'
    base = y.begin
    yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{base}" y2="{base}"/>'
    for value in x.ticks(7 * panel.width / WIDTH, least=0 if panel.across else 1):
        at = x(value)
        anchor = "end" if at > panel.width - 30 else "middle"
        yield f'<line class="axis" x1="{at}" x2="{at}" y1="{base}" y2="{base + 4}"/>'
        yield f'<text class="tick" x="{at}" y="{base + 17}" text-anchor="{anchor}">{escape(number(value))}</text>'
    if panel.across:
        at, caption = (LEFT + right) / 2, escape(panel.across.caption)
        yield f'<text class="tick" x="{at:g}" y="{base + 38}" text-anchor="middle">{caption}</text>'


def _aligned(labels: list[str]) -> list[str]:
    """Plain numbers with equally many digits behind the point: `1.0`, `1.5`."""
    found = [re.fullmatch(r"(-?[\d,]+)(?:\.(\d+))?( %)?", label) for label in labels]
    places = max((len(match[2] or "") for match in found if match), default=0)
    if not places or not all(found):
        return labels
    return [f"{match[1]}.{(match[2] or '').ljust(places, '0')}{match[3] or ''}" for match in found if match]


def _line(panel: Panel, place: int, x: _Axis, y: _Axis) -> Iterable[str]:
    series, look = panel.series[place], panel.look(place)
    smoothed = noisy(series.finite)
    kind = f"line {look}{' raw' if smoothed else ''}"
    runs = _runs(series)
    most = max(100, MOST_POINTS // (1 + len(panel.series) // 4))
    yield from (f'<path class="{kind}" d="{_path(thin(run, most), x, y)}"/>' for run in runs if len(run) > 1)
    if smoothed:
        yield f'<path class="line {look}" d="{_path(smooth(series.finite), x, y)}"/>'
    dots = series.finite if len(series.steps) <= 30 else [run[0] for run in runs if len(run) == 1]
    yield from (f'<circle class="dot {look}" cx="{x(s)}" cy="{y(v)}" r="2.4"/>' for s, v in thin(dots, 60))
    base = y.begin - 4
    for at in sorted({x(step) for step in series.bad}):
        yield f'<path class="bad" d="M{at - 3:.1f} {base - 3}l6 6m0 -6l-6 6"/>'


def _course(panel: Panel, place: int, x: _Axis, y: _Axis) -> Iterable[str]:
    """A line over an axis that has no steps, and around each of its points a zone that shows what is said of it."""
    series, look = panel.series[place], panel.look(place)
    points = [point for point in zip(series.across, series.values, strict=True) if all(map(math.isfinite, point))]
    if len(points) > 1:
        yield f'<path class="line {look}" d="{_path(points, x, y)}"/>'
    for at, value, said in zip(series.across, series.values, series.said, strict=True):
        if math.isfinite(at) and math.isfinite(value):
            circle = f'cx="{x(at):g}" cy="{y(value):g}"'
            yield f'<circle class="dot {look}" {circle} r="2.4"/>'
            yield (f'<g class="hover"><title>{escape(said)}</title><circle class="zone" {circle} r="9"/>'
                   f'<circle class="dot {look}" {circle} r="4.2"/></g>')  # fmt: skip


def _runs(series: Series) -> list[list[tuple[int, float]]]:
    """The stretches of a line between values that are not finite."""
    runs: list[list[tuple[int, float]]] = [[]]
    for step, value in zip(series.steps, series.values, strict=True):
        if math.isfinite(value):
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _path(points: Sequence[tuple[float, float]], x: _Axis, y: _Axis) -> str:
    return "M" + "L".join(f"{x(step):g} {y(value):g}" for step, value in points)


def _hovers(panel: Panel, x: _Axis, y: _Axis) -> Iterable[str]:
    """Upright zones, each of which shows a hairline, dots and (as its title) the values of one step."""
    values = [dict(zip(series.steps, series.values, strict=True)) for series in panel.series]
    most = max(20, MOST_HOVERS // (1 + len(panel.series) // 4))
    sparse = min(panel.series, key=lambda series: len(series.steps)).steps
    every = sorted({step for series in panel.series for step in series.steps})
    spread = [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)] if every else []
    chosen = every if len(every) <= most else sorted({*spread, *sparse[:: 1 + len(sparse) // most]})
    places = [x(step) for step in chosen]
    for i, step in enumerate(chosen):
        begin = (places[i - 1] + places[i]) / 2 if i else LEFT
        end = (places[i] + places[i + 1]) / 2 if i + 1 < len(places) else panel.width - RIGHT
        here = [(j, s.name, values[j][step]) for j, s in enumerate(panel.series) if step in values[j]]
        title = "\n".join([f"step {step:,}", *(f"{name} {panel.show(value)}" for _, name, value in here)])
        dots = "".join(f'<circle class="dot {panel.look(j)}" cx="{places[i]:g}" cy="{y(value):g}" r="3.2"/>'
                       for j, _, value in here if math.isfinite(value))  # fmt: skip
        yield (f'<g class="hover"><title>{escape(title)}</title><rect x="{begin:.1f}" y="0" width="{end - begin:.1f}" '
               f'height="{y.begin}"/><path d="M{places[i]:g} {TOP}V{y.begin}"/>{dots}</g>')  # fmt: skip
