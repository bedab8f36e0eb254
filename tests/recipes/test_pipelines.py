# SPDX-License-Identifier: Apache-2.0
"""The stages of rlaif and constitutional runs fit together: what one writes the next reads, killed anywhere or not.

Models are not asked here and nothing is trained: `Told` answers, and a run is its config in its directory.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jaxpost.data.principles import plain
from jaxpost.data.tokenizers import SentencePieceTokenizer
from jaxpost.evals.rank import Scores
from jaxpost.faults import Fault
from jaxpost.recipes import constitutional, record, rlaif
from jaxpost.recipes.base import BUILT_IN, Fresh, Pretrained
from jaxpost.recipes.configs import load
from jaxpost.recipes.corpus import Files, Mixed
from jaxpost.recipes.feedback import giving, learning, stages
from jaxpost.recipes.feedback.asking import Speaker, Written
from jaxpost.recipes.rollouts.scoring import RewardModel
from tests.conftest import ROOT

TOKENIZER = SentencePieceTokenizer.load(BUILT_IN["nano"] / "tokenizer.model")


class Killed(Exception):
    pass


@dataclass
class World:
    """Who was asked, in order, and what dies: the n-th question to a model, or the n-th run."""

    asked: list
    trained: list
    dies: int | None = None

    def lives(self):
        if self.dies is not None and len(self.asked) + len(self.trained) == self.dies:
            self.dies = None
            raise Killed


class Told(Speaker):
    """A model that says what its name, the prompt and the seed come to."""

    def __init__(self, name, world):
        self.name, self.world, self.tokenizer, self.cut = name, world, TOKENIZER, 0

    def write(self, asked, sampling, samples=1):
        self.world.lives()
        self.world.asked.append(self.name)
        texts = [plain(one.prompt if hasattr(one, "prompt") else one) for one in asked]
        return [
            [
                Written(f"{self.name} {len(text)} {(sampling.seed + number) * sampling.temperature:g} {i}", "end", 4)
                for i in range(samples)
            ]
            for number, text in enumerate(texts)
        ]

    def fits(self, asked, sampling):
        return "2" not in plain(asked)

    def letters(self, asked, letters):
        self.world.lives()
        self.world.asked.append(f"{self.name} judges")
        logits = [sum(map(ord, plain(one.prompt).partition("B: ")[0])) % 7 for one in asked]  # of what stands first
        return Scores([x for logit in logits for x in (-8.0, logit - 11.0)], [1] * 2 * len(asked))


@pytest.fixture
def world(monkeypatch):
    made = World([], [])

    def speaker(name, rows):
        return Told(Path(name if isinstance(name, str) else name.adapter or name.path).name, made)

    def trained(folder, config, model, data):
        made.lives()
        made.trained.append(folder.name)
        whole = record.recorded(replace(config, run=str(folder), model=model, data=data))
        record.write(folder, whole)
        return {}

    monkeypatch.setattr(stages.report, "write_report", lambda run: run / "report.html")  # test_stages writes one
    monkeypatch.setattr(giving, "speaker", speaker)
    monkeypatch.setattr(constitutional, "speaker", speaker)
    monkeypatch.setattr(learning, "trained_in", trained)
    return made


def contents(run):
    """All that is in a run, but for times."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name not in ("report.html", "metrics.jsonl", "run.json"):
            content = path.read_text().replace(str(run), "RUN")
            if path.name == "stage.json":
                content = {name: value for name, value in json.loads(content).items() if name != "seconds"}
            found[str(path.relative_to(run))] = content
    return found


def config_of(name, function="tiny"):
    return load(f"{ROOT / 'configs' / name}.py:{function}")


PIPELINES = {
    "rlaif_nano": (rlaif, ["round1_dpo", "round2_dpo"]),
    "constitutional_nano": (constitutional, ["sft", "reward", "ppo"]),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_that_is_killed_anywhere_ends_the_same(world, tmp_path, name):
    (recipe, runs), config = PIPELINES[name], config_of(name)
    recipe.main(config, tmp_path / "whole")
    assert world.trained == runs and config.result == runs[-1]
    whole, things = contents(tmp_path / "whole"), len(world.asked) + len(world.trained)
    for dies in (things // 2,):
        world.asked, world.trained, world.dies = [], [], dies
        with pytest.raises(Killed):
            recipe.main(config, tmp_path / str(dies))
        recipe.main(config, tmp_path / str(dies))
        assert contents(tmp_path / str(dies)) == whole, dies
        assert list(dict.fromkeys(world.trained)) == runs  # the last one again, if what came of it was not yet told


def test_each_round_goes_on_from_the_one_before(world, tmp_path):
    rlaif.main(config_of("rlaif_nano"), tmp_path)
    first, second = (record.read(tmp_path / f"round{i}_dpo") for i in (1, 2))
    assert first.model.adapter == "" and second.model.adapter == str(tmp_path / "round1_dpo")
    assert first.data == Files((str(tmp_path / "round1_pairs" / "pairs.jsonl"),))
    one, two = "round1_dpo", "round2_dpo"
    assert world.asked == ["nano", "nano", "nano judges", one, one, f"{one} judges", two]
    rows = [json.loads(line)["prompt"] for line in (tmp_path / "start" / "prompts.jsonl").read_text().splitlines()]
    answered = [
        [
            json.loads(line)["prompt"]
            for line in (tmp_path / f"round{i}_answers" / "answers.jsonl").read_text().splitlines()
        ]
        for i in (1, 2)
    ]
    assert rows == answered[0] + answered[1] and len(rows) == 16
    assert [len(set(some)) for some in answered] == [8, 8]


def test_the_judge_may_be_another(world, tmp_path):
    config = replace(config_of("rlaif_nano"), rounds=1, learning=rlaif.ByTuning())
    rlaif.main(replace(config, judge="start"), tmp_path / "start")
    assert "nano judges" in world.asked and world.trained == ["sft"]
    rows = [json.loads(line) for line in (tmp_path / "start" / "sft" / "winners.jsonl").read_text().splitlines()]
    assert rows and set(rows[0]) == {"prompt", "completion"}
    with pytest.raises(Fault, match="no_such_run is neither a run directory, nor a model"):
        rlaif.main(replace(config, judge="no_such_run"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_prompts_that_are_too_long_are_handled_as_configured(world, tmp_path):
    config = replace(config_of("rlaif_nano"), rounds=1, learning=rlaif.ByTuning())
    rlaif.main(replace(config, answering=replace(config.answering, overlong="drop")), tmp_path / "drop")
    facts = json.loads((tmp_path / "drop" / "run.json").read_text())
    assert (
        facts["answers: prompts left out"] > 0 and facts["answers: prompts"] + facts["answers: prompts left out"] == 8
    )
    with pytest.raises(Fault, match="prompts are longer than the model can read and answer in 8 tokens"):
        rlaif.main(replace(config, answering=replace(config.answering, overlong="error")), tmp_path / "error")


def test_what_constitutional_stages_learn_from(world, tmp_path):
    config = config_of("constitutional_nano")
    constitutional.main(config, tmp_path)
    sft, reward, ppo = (record.read(tmp_path / name) for name in ("sft", "reward", "ppo"))
    assert isinstance(sft.data, Mixed) and sft.data.weighting.given == {"revisions": 1.0, "helpful": 0.5}
    assert isinstance(reward.data, Mixed) and set(reward.data.sources) == {"ai", "human"}
    assert ppo.rewards == (RewardModel(str(tmp_path / "reward")),) and ppo.model == reward.model
    assert ppo.model.adapter == str(tmp_path / "sft")
    lines = {
        name: (tmp_path / name).read_text().splitlines() for name in ("start/prompts.jsonl", "revisions/tuned.jsonl")
    }
    sets = [json.loads(line)["set"] for line in lines["start/prompts.jsonl"]]
    assert sets == ["red team"] * 8 + ["helpful"] * 4 and len(lines["revisions/tuned.jsonl"]) == 8
    # The red team's prompts are judged, by the model as it was at the start; PPO answers the helpful ones as well.
    assert len((tmp_path / "answers" / "answers.jsonl").read_text().splitlines()) == 8
    assert world.asked.count("nano judges") == 1 and Path(ppo.data.train) == tmp_path / "start" / "prompts.jsonl"
    facts = json.loads((tmp_path / "run.json").read_text())
    for fact in ("start: red team manners_kind", "ppo: helpful manners_right", "revisions: round 1 manners_kind"):
        assert 0 <= facts[fact] <= 1
    assert len(json.loads((tmp_path / "generations.json").read_text())) == 8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": Fresh(None, "t")}, "a model that gives feedback must know how"),
        ({"answering": rlaif.Answering(samples=1)}, "answering.samples is 1; it must be at least 2"),
        ({"rounds": 0}, "rounds is 0; a run learns in 1 round or more"),
        ({"measures": (rlaif.Function("kindness"),)}, "no reward is called 'kindness'"),
        ({"judging": rlaif.Judging("none.txt")}, r"no file none.txt \(principles\)"),
        ({"learning": rlaif.ByTuning(), "also": {"x": learning.Also(Files("a"))}}, "learns from none"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(world, tmp_path, changes, message):
    with pytest.raises(Fault, match=message):
        rlaif.main(replace(rlaif.Config("run", model=Pretrained()), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not world.asked


def test_one_seed_moves_all_others():
    config = config_of("constitutional_nano")
    moved = giving.seeded(replace(config, seed=3))
    assert giving.seeded(config) == config and moved.seed == 3
    seeds = [moved.prompts.seed, moved.helpful.seed, moved.revising.seed, moved.revising.sampling.seed]
    seeds += [moved.answering.sampling.seed, moved.judging.seed, moved.tuning.train.seed]
    seeds += [moved.learning.recipe.train.seed, moved.learning.reward_model.train.seed]
    assert seeds == [3] * 9 and moved.model == config.model
