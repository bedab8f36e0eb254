# SPDX-License-Identifier: Apache-2.0
"""Constitutional AI: a model criticises and revises its own answers by written principles, is tuned on the revisions,
and then learns from preferences that it judges by such principles (Bai et al. 2022, https://arxiv.org/abs/2212.08073).

Red-team prompts -> answers, critiques, revisions -> tuning on those, beside helpful answers -> answers of the tuned
model, judged in pairs -> a reward model of these preferences, and those of people -> PPO (or DPO).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxpost.recipes import sft
from jaxpost.recipes.base import Model, Pretrained
from jaxpost.recipes.feedback import answering, giving, learning, revising
from jaxpost.recipes.feedback.answering import Answering, BuiltIn, Prompts
from jaxpost.recipes.feedback.asking import Written, speaker
from jaxpost.recipes.feedback.judging import Judging, Keep
from jaxpost.recipes.feedback.learning import Also, ByDpo, ByGrpo, ByPpo, ByTuning, Learning
from jaxpost.recipes.feedback.revising import Revising
from jaxpost.recipes.feedback.stages import Facts, Row, Stage, follow, write_rows
from jaxpost.recipes.rollouts.scoring import Function

__all__ = ["Also", "Answering", "BuiltIn", "ByDpo", "ByGrpo", "ByPpo", "ByTuning", "Config", "Function", "Judging"]
__all__ += ["Pretrained", "Prompts", "Revising"]
RED_TEAM, HELPFUL = "red team", "helpful"


@dataclass(frozen=True)
class Config:
    """A run of constitutional AI. `prompts` are the red team's. `tuning` learns the revisions, and the model's own
    answers from before to `helpful` prompts, so that it goes on to do what it could: `helpful_weight` of them to one
    revision; what is `also_tuned` is mixed in, each under a name. `learning` learns from AI preferences, mixed with
    `also` (those of people, say); PPO answers prompts of both kinds. The `judge` is the tuned `policy`, the model that
    the run has from the `start`, or a run or model by its name. `keep`: all pairs, or of each prompt the best answer
    against the worst. `measures` are what answers to held-out prompts of both kinds are scored by at the start and
    after every tuning, and what revisions are. `seed` is added to every other seed.
    """

    run: str
    model: Model = Pretrained()
    prompts: Prompts = Prompts()
    helpful: Prompts | None = None
    helpful_weight: float = 1.0
    revising: Revising = Revising()
    tuning: sft.Config = sft.Config("")
    also_tuned: Mapping[str, Also] = field(default_factory=dict)
    answering: Answering = Answering()
    judge: str = "start"
    judging: Judging = Judging()
    keep: Keep = "all"
    learning: Learning = ByPpo()
    also: Mapping[str, Also] = field(default_factory=dict)
    measures: tuple[Function, ...] = ()
    seed: int = 0

    @property
    def result(self) -> str:
        """The stage whose run is what all of them come to."""
        return stages(self, Path(self.run))[-1].name


def stages(config: Config, directory: Path) -> list[Stage]:
    """All stages of a run. Each learns from what the ones before it have written."""
    sets = {RED_TEAM: config.prompts} | ({HELPFUL: config.helpful} if config.helpful else {})
    revisions, answers, pairs = (directory / name for name in ("revisions", "answers", "pairs"))
    told = giving.after(config, directory)

    def revise(folder: Path) -> Facts:
        return revised(config, directory, folder)

    def tune(folder: Path) -> Facts:
        files = {"revisions": (revisions / TUNED, 1.0)}
        if config.helpful:
            files[HELPFUL] = (revisions / ANSWERED, config.helpful_weight)
        data = learning.mixed(files, config.also_tuned, folder)
        return {**learning.trained_in(folder, config.tuning, config.model, data), **told(folder)}

    policy = learning.over(config.model, directory / "sft")
    return [
        giving.drawn(config, sets),
        Stage(revisions.name, revise),
        Stage("sft", tune),
        giving.answered(config, policy, answers.name, lambda: giving.prompts_of(directory, RED_TEAM)),
        giving.compared(config, policy, pairs.name, answers),
        *learning.stages(config.learning, policy, directory, pairs, "", config.also, told),
    ]


TUNED, ANSWERED = "tuned.jsonl", "helpful.jsonl"


def revised(config: Config, directory: Path, folder: Path) -> Facts:
    """The model's answers to the red team, criticised and revised by itself, and its answers to helpful prompts, as
    rows to be tuned on; and what the measures say of the answers after every round."""
    by, editor = speaker(config.model, config.answering.rows), revising.editor(config.revising)

    def given(name: str) -> list[Row]:
        rows, overlong = giving.prompts_of(directory, name), config.answering.overlong
        return answering.readable(by, rows, overlong, config.revising.sampling)

    rows = revising.revised(editor, by, given(RED_TEAM), folder)
    tuned, counts = revising.learnable(rows, config.revising)
    write_rows(folder / TUNED, tuned)
    if config.helpful:
        once = replace(config.answering, samples=1, sampling=config.revising.sampling)
        done = answering.answered(by, given(HELPFUL), once, folder)
        write_rows(folder / ANSWERED, answering.completed(done))
    said = {"drafts": [row["draft"] for row in rows]}
    said |= {f"round {n + 1}": revising.after(rows, n) for n in range(config.revising.rounds)}

    def told(texts: list[str]) -> Facts:
        count = by.tokenizer.encode
        written = [Written(text, "end", len(count(text)) + 1) for text in texts]
        return giving.scored(by, config.measures, rows, written)

    return {"rows": counts, **{name: told(texts) for name, texts in said.items()}, "prompts cut": by.cut}


def main(config: Config, directory: Path) -> None:
    """Goes through the stages, from where an earlier start came to, and tells what each of them did."""
    giving.check(config)
    revising.editor(config.revising)
    learning.check(learning.ByTuning(config.tuning))
    made = stages(giving.seeded(config), directory)
    follow(config, directory, made, lambda: giving.samples(directory, directory / made[-1].name))
