# SPDX-License-Identifier: Apache-2.0
"""What a policy was rewarded with, by how far it had moved from the model that it started from: the curve on which a
reward model that is too weak goes on rising while the true reward falls (Gao et al. 2022, Scaling Laws for Reward Model
Overoptimization, https://arxiv.org/abs/2210.10760)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpost.evals import curves
from jaxpost.evals.curves import Across, Panel, Series, number
from jaxpost.evals.panels import SOURCE, Records

KL = "kl"
MOST = 40  # points of a line
LEAST = 3  # held-out points that make a line
WIDE, HIGH = 940, 360
CAPTION = "KL from the model that the run started from, nats an answer (laid out by its square root)"


@dataclass(frozen=True)
class Path:
    """Where a run went: at `steps` the KL in nats, and the mean reward by every source. `weights` are those of the
    sources, as far as they are known: a source of weight 0 is only watched."""

    name: str
    steps: tuple[int, ...]
    kl: tuple[float, ...]
    rewards: Mapping[str, tuple[float, ...]]
    held_out: bool
    weights: Mapping[str, float]

    @property
    def watched(self) -> tuple[str, ...]:
        """The sources that nothing is learned from."""
        return tuple(source for source in self.rewards if self.weights.get(source) == 0)

    @property
    def best(self) -> int:
        """The place at which the source that is only watched was highest, or the first source where none is."""
        values = self.rewards[next(iter(self.watched or self.rewards))]
        return max(range(len(values)), key=values.__getitem__)


@dataclass(frozen=True)
class Moment:
    """A run at one place of its path."""

    step: int
    kl: float
    rewards: Mapping[str, float]


def moment(path: Path, place: int) -> Moment:
    return Moment(path.steps[place], path.kl[place], {name: values[place] for name, values in path.rewards.items()})


def path_of(name: str, records: Records, config: Mapping[str, Any] | None = None) -> Path | None:
    """Held-out values if there are enough of them, else those of training, smoothed; None of a run that has no rewards
    by source or no KL."""
    for prefix in ("eval_", ""):
        named = {key for record in records for key in record if key.startswith(prefix + SOURCE)}
        sources = sorted(key.removeprefix(prefix + SOURCE) for key in named)
        wanted = [prefix + KL, *(prefix + SOURCE + source for source in sources)]
        found = [
            (r["step"], *(float(r[key]) for key in wanted)) for r in records if all(map(_there, map(r.get, wanted)))
        ]
        if sources and len(found) >= LEAST:
            steps, *columns = zip(*(found if len(found) <= MOST else _smooth(found)), strict=True)
            rewards = dict(zip(sources, columns[1:], strict=True))
            kl = tuple(max(0.0, value) for value in columns[0])  # an estimate of what is never negative
            return Path(name, steps, kl, rewards, bool(prefix), weights_of(config or {}))
    return None


def weights_of(config: Mapping[str, Any]) -> dict[str, float]:
    """The weights of a run's rewards by their names, read from its config."""
    rewards = config.get("rewards")
    entries = [one for one in rewards if isinstance(one, dict)] if isinstance(rewards, list) else []
    return {_called(one): float(one["weight"]) for one in entries if isinstance(one.get("weight"), int | float)}


def panel(paths: Sequence[Path], colours: Mapping[str, int] | None = None) -> Panel | None:
    """Rewards against KL: of one run a colour for each source, of several one for each of `colours`. What is learned
    from is dashed, what is only watched drawn through. None if no run has moved.

    Every line starts at 0, and 1 is the distance of the highest and the lowest value that its source has in any of the
    runs: so sources of different scales can be compared, and runs too.
    """
    moved = [path for path in paths if max(path.kl) > min(path.kl)]
    if not moved:
        return None
    sources = sources_of(moved)
    span = spans(moved)
    series = []
    for path in moved:
        for source, values in path.rewards.items():
            width = (span[source][1] - span[source][0]) or 1.0
            series.append(
                Series(
                    source if colours is None else f"{path.name}, {source}",
                    path.steps,
                    tuple((value - values[0]) / width for value in values),
                    sources.index(source) if colours is None else colours[path.name],
                    dash_of(source, moved),
                    path.kl,
                    tuple(_said(path, source, i, colours is not None) for i in range(len(values))),
                )
            )
    return Panel("Reward against KL", tuple(series), number, across=Across(CAPTION, True), width=WIDE, height=HIGH)


def sources_of(paths: Sequence[Path]) -> list[str]:
    return list(dict.fromkeys(source for path in paths for source in path.rewards))


def dash_of(source: str, paths: Sequence[Path]) -> int:
    """What is only watched is drawn through; of others the first is dashed and further ones dotted."""
    watched = {name for path in paths for name in path.watched}
    others = [name for name in sources_of(paths) if name not in watched]
    return 0 if source in watched else 1 + min(1, others.index(source)) if watched else others.index(source)


def spans(paths: Sequence[Path]) -> dict[str, tuple[float, float]]:
    """The lowest and the highest value of every source."""
    found = {source: [x for path in paths for x in path.rewards.get(source, ())] for source in sources_of(paths)}
    return {source: (min(values), max(values)) for source, values in found.items()}


def _said(path: Path, source: str, place: int, named: bool) -> str:
    told = [f"step {path.steps[place]:,}", f"KL {number(path.kl[place])}"]
    told += [f"{name} {number(values[place])}" for name, values in path.rewards.items()]
    return "\n".join([f"{path.name}, {source}" if named else source, *told])


def _smooth(found: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """KL and rewards smoothed alike, so that a place of the path is the mean course of both."""
    columns = [
        curves.smooth([(row[0], row[k]) for row in found], min(MOST, len(found) // 8)) for k in range(1, len(found[0]))
    ]
    for points in zip(*columns, strict=True):
        yield points[0][0], *(value for _, value in points)


def _there(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _called(reward: Mapping[str, Any]) -> str:
    """What a reward is called in the metrics: by its name, its function's or its run's."""
    of = str(reward.get("of") or reward.get("run") or "")
    plain, _, option = of.partition(":")
    return reward.get("name") or (option if plain.endswith(".py") else plain.rstrip("/").rpartition("/")[2])
