# SPDX-License-Identifier: Apache-2.0
"""Learning from AI feedback: a model answers prompts several times, a judge compares the answers by written principles,
and the model learns from its preferences (Lee et al. 2023, https://arxiv.org/abs/2309.00267).

Where the judge is the policy itself and there are several rounds, these are self-rewarding language models (Yuan et al.
2024, https://arxiv.org/abs/2401.10020): each round's model answers, and judges, for the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxpost.faults import Fault
from jaxpost.recipes.base import Model, Pretrained
from jaxpost.recipes.feedback import giving, learning
from jaxpost.recipes.feedback.answering import Answering, BuiltIn, Prompts
from jaxpost.recipes.feedback.judging import Judging, Keep
from jaxpost.recipes.feedback.learning import Also, ByDpo, ByGrpo, ByPpo, ByTuning, Learning
from jaxpost.recipes.feedback.stages import Row, Stage, follow
from jaxpost.recipes.rollouts.scoring import Function

__all__ = ["Also", "Answering", "BuiltIn", "ByDpo", "ByGrpo", "ByPpo", "ByTuning", "Config", "Function", "Judging"]
__all__ += ["Pretrained", "Prompts"]


@dataclass(frozen=True)
class Config:
    """A run of AI feedback. Each of `rounds` answers `prompts.count` further prompts with the model of the round before
    it, has the answers judged and learns from that: by DPO (and kin), a reward model and PPO, or tuning on the answers
    that won. The `judge` is the `policy` of the round, the model that the run has from the `start`, or a run or model
    by its name. `keep`: all pairs, or of each prompt the best answer against the worst. `also` is mixed into the
    preferences, each under a name. `measures` are what answers to held-out prompts are scored by after every round.
    `seed` is added to every other seed.
    """

    run: str
    model: Model = Pretrained()
    prompts: Prompts = Prompts()
    answering: Answering = Answering()
    judge: str = "policy"
    judging: Judging = Judging()
    keep: Keep = "all"
    learning: Learning = ByDpo()
    also: Mapping[str, Also] = field(default_factory=dict)
    rounds: int = 1
    measures: tuple[Function, ...] = ()
    seed: int = 0

    @property
    def result(self) -> str:
        """The stage whose run is what all of them come to."""
        return stages(self, Path(self.run))[-1].name


def stages(config: Config, directory: Path) -> list[Stage]:
    """All stages of a run. Each learns from what the one before it has written."""
    found, model = [giving.drawn(config, {"": config.prompts}, config.rounds)], config.model
    told = giving.after(config, directory)
    for number in range(config.rounds):
        prefix = f"round{number + 1}_" if config.rounds > 1 else ""
        answers, pairs = directory / f"{prefix}answers", directory / f"{prefix}pairs"

        def share(number: int = number) -> list[Row]:
            rows = giving.prompts_of(directory, "")
            size = len(rows) // config.rounds
            return rows[number * size : (number + 1) * size]

        found.append(giving.answered(config, model, answers.name, share))
        found.append(giving.compared(config, model, pairs.name, answers))
        found += learning.stages(config.learning, model, directory, pairs, prefix, config.also, told)
        model = learning.over(model, directory / found[-1].name)
    return found


def main(config: Config, directory: Path) -> None:
    """Goes through the stages, from where an earlier start came to, and tells what each of them did."""
    giving.check(config)
    if config.rounds < 1:
        raise Fault(f"rounds is {config.rounds}; a run learns in 1 round or more")
    made = stages(giving.seeded(config), directory)
    follow(config, directory, made, lambda: giving.samples(directory, directory / made[-1].name))
