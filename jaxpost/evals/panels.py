# SPDX-License-Identifier: Apache-2.0
"""What a run measures, as panels in people's words: what belongs together in one, in the order in which it is read."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxpost.evals.curves import Panel, Series, number, percent

Records = Sequence[Mapping[str, Any]]
HELD_OUT = re.compile(r"eval[_/]")
ALIASES = {"token_accuracy": "accuracy", "learning_rate": "lr"}
HIDDEN = {"step", "time"}
SOURCE = "reward/"


@dataclass(frozen=True)
class Known:
    """A panel's title, how its values are written, whether its axis starts at 0, and, where it shows several metrics,
    what each is called; a metric that ends in `/` stands for all that begin so."""

    title: str
    show: Callable[[float], str] = number
    from_zero: bool = False
    lines: Mapping[str, str] = field(default_factory=dict)


# By the first of their metrics. What a run learns for comes first, then how it learns, then what it runs like.
KNOWN: dict[str, Known] = {
    "reward": Known("Reward"),
    SOURCE: Known("Reward by source", lines={SOURCE: ""}),
    "kl": Known("KL from the start (nats an answer)", from_zero=True),
    "loss": Known("Loss"),
    "accuracy": Known("Token accuracy", percent),
    "told_apart": Known("Preferences told apart", percent),
    "margin": Known("Margin of the better answer (nats)"),
    "chosen_reward": Known(
        "Implicit reward (nats)", lines={"chosen_reward": "better answer", "rejected_reward": "worse answer"}
    ),
    "likelier": Known("Better answer is the likelier one", percent),
    "chosen_log_prob": Known(
        "Log-probability of an answer (nats)",
        lines={"chosen_log_prob": "better answer", "rejected_log_prob": "worse answer"},
    ),
    "score": Known("Mean score of answers"),
    "length": Known("Tokens an answer", from_zero=True),
    "ended": Known("Answers that end by themselves", percent),
    "entropy": Known("Entropy (nats a token)", from_zero=True),
    "perplexity": Known("Perplexity"),
    "policy_loss": Known("Loss of the policy"),
    "value_loss": Known("Loss of the critic", from_zero=True),
    "explained_variance": Known("Share of the returns' variance that the critic explains", percent),
    "return": Known("Return of a token"),
    "reward_deviation": Known("Standard deviation of rewards", from_zero=True),
    "varied": Known("Prompts whose answers are rewarded differently", percent),
    "clipped": Known("Tokens whose ratio is clipped", percent, True),
    "update_kl": Known("KL of a step's own updates (nats a token)", from_zero=True),
    "kl_coefficient": Known("Weight of the KL penalty", from_zero=True),
    "sampler_gap": Known(
        "Sampler and trainer apart (nats a token)",
        from_zero=True,
        lines={"sampler_gap": "largest", "mean_sampler_gap": "mean"},
    ),
    "grad_norm": Known("Gradient norm", from_zero=True),
    "lr": Known("Learning rate", from_zero=True),
    "tokens_per_second": Known("Tokens per second", from_zero=True),
    "mfu": Known("Model FLOP utilisation", percent, True),
    "data_wait": Known("Share of the time waiting for data", percent, True),
    "fill": Known("Share of places filled", percent),
    "predictions": Known("Trained tokens a step"),
    "tokens": Known("Tokens a step"),
}
# Where batches are preferences or rollouts, these are something else.
PREFERRED = {"accuracy": "told_apart"}
WAITING = {"data_wait": Known("Share of the time sampling answers", percent, True)}
COUNTED = {"predictions": Known("Trained answers a step")}


@dataclass(frozen=True)
class Measured:
    """Values of one metric, in training or held out."""

    metric: str
    held_out: bool
    steps: tuple[int, ...]
    values: tuple[float, ...]


def measured(records: Records) -> Iterator[Measured]:
    """Every metric of a run, what was held out (`eval_x`, `eval/x`) apart from training."""
    names = dict.fromkeys(name for record in records for name in record if name not in HIDDEN)
    preferred = "margin" in names
    for name in names:
        found = [(r["step"], float(r[name])) for r in records if isinstance(r.get(name), int | float)]
        metric = HELD_OUT.sub("", name, count=1) if HELD_OUT.match(name) else name
        metric = ALIASES.get(metric, metric)
        if found:
            shown = PREFERRED.get(metric, metric) if preferred else metric
            yield Measured(shown, HELD_OUT.match(name) is not None, *zip(*found, strict=True))


def panels_of(records: Records) -> list[Panel]:
    """The panels of a run: lines of training drawn through, held-out ones beside them; where a panel has several
    metrics, each has a colour and what is held out is dashed."""
    found, words = _grouped(list(measured(records))), _words(records)
    return [_panel(key, members, words) for key, members in found.items()]


def compared(runs: Mapping[str, Records], colours: Mapping[str, int]) -> list[Panel]:
    """A panel for every metric that two of the runs have at least, a line a run: of held-out values where each of them
    has more than one, else of those in training."""
    found = {name: list(measured(records)) for name, records in runs.items()}
    words = _words([record for records in runs.values() for record in records])
    groups = _grouped([one for some in found.values() for one in some])
    panels = []
    for metric in dict.fromkeys(one.metric for members in groups.values() for one in members):
        lines = {name: {one.held_out: one for one in some if one.metric == metric} for name, some in found.items()}
        lines = {name: by for name, by in lines.items() if by}
        if len(lines) < 2:
            continue
        held = all(True in by and len(by[True].steps) > 1 for by in lines.values())
        chosen = {name: by.get(held) or by[not held] for name, by in lines.items()}
        series = tuple(Series(name, one.steps, one.values, colours[name]) for name, one in chosen.items())
        known, line = _known(metric, words)
        title = ": ".join(filter(None, (known.title, line)))
        panels.append(Panel(f"{title}, held out" if held else title, series, known.show, known.from_zero))
    return panels


def _grouped(found: Sequence[Measured]) -> dict[str, list[Measured]]:
    """By panel, known ones first and in their order; in a panel by metric, training before what was held out."""
    groups: dict[str, list[Measured]] = {}
    for one in found:
        groups.setdefault(_key(one.metric), []).append(one)
    order = [key for key in KNOWN if key in groups] + [key for key in groups if key not in KNOWN]
    return {key: sorted(groups[key], key=lambda one: (_place(key, one.metric), one.held_out)) for key in order}


def _key(metric: str) -> str:
    return next((key for key, known in KNOWN.items() if any(_is(metric, name) for name in known.lines)), metric)


def _is(metric: str, name: str) -> bool:
    return metric.startswith(name) if name.endswith("/") else metric == name


def _place(key: str, metric: str) -> Any:
    lines = KNOWN[key].lines if key in KNOWN else {}
    return next((i for i, name in enumerate(lines) if _is(metric, name)), 0), metric if len(lines) == 1 else ""


def _known(metric: str, words: Mapping[str, Known]) -> tuple[Known, str]:
    """The panel of a metric, and what its line is called there."""
    key = _key(metric)
    known = words.get(key) or Known(metric.replace("_", " ").capitalize())
    line = next((word or metric.removeprefix(name) for name, word in known.lines.items() if _is(metric, name)), "")
    return known, line


def _words(records: Records) -> dict[str, Known]:
    """The panels of this kind of run, by key."""
    names = {name for record in records for name in record}
    sampled, preferred = "ended" in names, "margin" in names
    return {**KNOWN, **(WAITING if sampled else {}), **(COUNTED if preferred else {})}


def _panel(key: str, members: Sequence[Measured], words: Mapping[str, Known]) -> Panel:
    known = _known(members[0].metric, words)[0]
    order = list(dict.fromkeys(one.metric for one in members))
    series = []
    for one in members:
        line = _known(one.metric, words)[1]
        made = Series(line or ("held out" if one.held_out else "training"), one.steps, one.values)
        if line:
            name = f"{line}, held out" if one.held_out else line
            made = replace(made, name=name, colour=order.index(one.metric), dash=int(one.held_out))
        series.append(made)
    return Panel(known.title, tuple(series), known.show, known.from_zero)
