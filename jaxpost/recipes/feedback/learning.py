# SPDX-License-Identifier: Apache-2.0
"""Stages in which a model learns: ordinary runs, each in its directory, from files that earlier stages wrote."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxpost.data.mixtures import Weights
from jaxpost.faults import Fault
from jaxpost.recipes import configs, dpo, grpo, ppo, record, reward, run, sft
from jaxpost.recipes.base import Model, Pretrained
from jaxpost.recipes.corpus import Files, Mixed, Tfds, World
from jaxpost.recipes.feedback.stages import Facts, Row, Stage, read_rows, write_rows
from jaxpost.recipes.rollouts import policy
from jaxpost.recipes.rollouts.scoring import RewardModel
from jaxpost.shard import make_mesh
from jaxpost.train import metrics

Source = Files | Tfds | World
START = "start"
PROMPTS, HELD_OUT, PAIRS = "prompts.jsonl", "held_out.jsonl", "pairs.jsonl"


# Where the model, the data and the directory of each of these runs are, the pipeline says.


@dataclass(frozen=True)
class ByDpo:
    """Preferences are learned directly, by DPO or its kin."""

    recipe: dpo.Config = dpo.Config("")


@dataclass(frozen=True)
class ByPpo:
    """A reward model of the preferences, and PPO against it: its weight is 1, and other rewards are added to it."""

    reward_model: reward.Config = reward.Config("")
    recipe: ppo.Config = ppo.Config("", rewards=())


@dataclass(frozen=True)
class ByGrpo:
    """The same with GRPO."""

    reward_model: reward.Config = reward.Config("")
    recipe: grpo.Config = grpo.Config("", rewards=())


@dataclass(frozen=True)
class ByTuning:
    """The answers that won are tuned on, and those that lost are forgotten."""

    recipe: sft.Config = sft.Config("")


Learning = ByDpo | ByPpo | ByGrpo | ByTuning


@dataclass(frozen=True)
class Also:
    """Rows that are mixed in: how many come to one of those that the run makes itself (`weight`), and of a built-in
    world how many there are (`count`, 0: its own number)."""

    source: Source
    weight: float = 1.0
    count: int = 0


def over(model: Model, run: Path) -> Model:
    """The model as that run left it, for another to start from."""
    assert isinstance(model, Pretrained)
    return replace(model, adapter=str(run))


def stages(
    learning: Learning,
    model: Model,
    directory: Path,
    pairs: Path,
    prefix: str,
    also: Mapping[str, Also],
    told: Callable[[Path], Facts],
) -> list[Stage]:
    """How a model learns from the preferences in the directory `pairs`, as stages; and what is `told` of the model that
    the last of them leaves."""
    preferences, start = pairs / PAIRS, directory / START

    def compares(config: Any) -> Callable[[Path], Facts]:
        def act(folder: Path) -> Facts:
            return trained_in(folder, config, model, mixed({"ai": (preferences, 1.0)}, also, folder))

        return act

    def wins(folder: Path) -> Facts:
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in read_rows(preferences)]
        write_rows(folder / "winners.jsonl", rows)
        return trained_in(
            folder, learning.recipe, model, mixed({"winners": (folder / "winners.jsonl", 1.0)}, {}, folder)
        )

    def reinforces(folder: Path) -> Facts:
        assert isinstance(learning, ByPpo | ByGrpo)
        rewards = (RewardModel(str(directory / f"{prefix}reward")), *learning.recipe.rewards)
        data = Files(str(start / PROMPTS), test=str(start / HELD_OUT))
        return trained_in(folder, replace(learning.recipe, rewards=rewards), model, data)

    recipe = learning.recipe
    act = wins if isinstance(learning, ByTuning) else compares(recipe) if isinstance(learning, ByDpo) else reinforces
    last = Stage(f"{prefix}{_recipe(recipe)}", lambda folder: {**act(folder), **told(folder)})
    if isinstance(learning, ByPpo | ByGrpo):
        return [Stage(f"{prefix}reward", compares(learning.reward_model)), last]
    return [last]


def _recipe(config: Any) -> str:
    return configs.recipe(config).__name__.rpartition(".")[2]


def trained_in(folder: Path, config: Any, model: Model, data: Any) -> Facts:
    """A run of the config's own recipe in that folder; what it measured last. Where there are too few rows to keep some
    of them apart, nothing is measured: how many a judge leaves cannot be known when the config is written."""
    if config.train.eval_every and not len(data.held_out(config.train.seed)):
        config = replace(config, train=replace(config.train, eval_every=0))
    whole = record.recorded(replace(config, run=str(folder), model=model, data=data))
    configs.recipe(whole).main(whole, folder)
    gc.collect()  # what the run held of the model, which is read again to be measured
    last: dict[str, Any] = {}
    for line in metrics.read(folder):
        last |= {name[5:]: value for name, value in line.items() if name.startswith("eval_")}
    return {"held out": {name: round(value, 4) for name, value in last.items() if value == value}} if last else {}


def mixed(files: Mapping[str, tuple[Path, float]], also: Mapping[str, Also], folder: Path) -> Files | Mixed:
    """Files of the run with their weights, and what is mixed in; one by itself as it is."""
    if len(files) + len(also) == 1:
        return Files(tuple(str(path) for path, _ in files.values()))
    found: dict[str, Files | Tfds] = {name: Files(str(path)) for name, (path, _) in files.items()}
    weights = {name: weight for name, (_, weight) in files.items()}
    for name, other in also.items():
        if name in found:
            raise Fault(f"also: {name!r} is what the run calls its own rows; give the others another name")
        found[name], weights[name] = on_disk(other.source, other.count, folder / name), other.weight
    return Mixed(found, Weights(weights))


def on_disk(source: Source, count: int, path: Path) -> Files | Tfds:
    """A source as files: rows of a built-in world are written down, `count` of them (0: all), and as many of those held
    out, 256 at most."""
    if not isinstance(source, World):
        return source
    train, test = path.with_suffix(".jsonl"), path.with_name(f"{path.name}_held_out.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(train, _some(source.training(0), count))
    write_rows(test, _some(source.held_out(0), min(count or 256, 256)))
    return Files(str(train), test=str(test))


def _some(rows: Sequence[Row], count: int) -> list[Row]:
    return [rows[i] for i in range(min(count or len(rows), len(rows)))]


def check(learning: Learning) -> None:
    """What can be known of the runs to come before the first stage: that their numbers make sense."""
    for config in filter(None, (getattr(learning, "reward_model", None), learning.recipe)):
        checked = policy.check if hasattr(config, "rollout") else run.check
        checked(config, make_mesh(config.train.mesh))
