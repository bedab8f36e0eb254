# SPDX-License-Identifier: Apache-2.0
"""What a model's feedback becomes: pairs, preferences and revisions, each counted, whoever is asked."""

import json
import math
from dataclasses import dataclass, field, replace

import pytest

from jaxpost.data.principles import plain
from jaxpost.data.tasks import Example
from jaxpost.evals.judge import Compared, Verdict
from jaxpost.evals.rank import Scores
from jaxpost.faults import Fault
from jaxpost.recipes import sft
from jaxpost.recipes.corpus import Files, Mixed, World
from jaxpost.recipes.feedback import answering, judging, learning, revising
from jaxpost.recipes.feedback.answering import Answering, BuiltIn, Prompts, asked
from jaxpost.recipes.feedback.asking import Written
from jaxpost.recipes.feedback.judging import Judging, Ruling
from jaxpost.recipes.feedback.learning import Also
from jaxpost.recipes.feedback.revising import Revising
from jaxpost.sample import Sampling


@dataclass
class Fake:
    """A speaker that says what a function makes of the prompt's text, the seed and the answer's number."""

    says: object
    scores: object = None
    asked: list = field(default_factory=list)

    def write(self, questions, sampling, samples=1):
        texts = [plain(q.prompt) if hasattr(q, "prompt") else plain(q) for q in questions]
        self.asked += texts
        return [[Written(self.says(text, sampling.seed, i), "end", 3) for i in range(samples)] for text in texts]

    def letters(self, questions, letters):
        self.asked += [plain(one.prompt) for one in questions]
        return Scores([x for one in questions for x in self.scores(plain(one.prompt))], [1] * 2 * len(questions))


def answers(*texts, reason="end"):
    return [{"text": text, "reason": reason, "tokens": 3} for text in texts]


# --- pairs


def test_pairs_of_different_answers():
    rows = [
        {"prompt": "a", "answers": answers("x", "y", "x")},
        {"prompt": "b", "answers": answers("x", "x", "")},
        {"prompt": "c", "answers": [*answers("x"), *answers("z", reason="length")]},
    ]
    pairs, counts = answering.pairs(rows, Answering(), 0)
    assert [(p.prompt, p.one, p.other, p.number, p.group) for p in pairs] == [
        ("a", "x", "y", 0, 0),
        ("a", "y", "x", 1, 0),
        ("c", "x", "z", 2, 2),
    ]
    assert counts == {"empty answers": 1, "unfinished answers": 1, "identical pairs": 2}
    pairs, _ = answering.pairs(rows, Answering(unfinished="drop", pairs=1), 0)
    assert len(pairs) == 1 and pairs[0].group == 0
    with pytest.raises(Fault, match=r"no two different answers to one of 1 prompts \(1 empty answers, 1 identical"):
        answering.pairs(rows[1:2], Answering(), 0)


def test_answers_depend_on_the_prompts_number(tmp_path):
    rows = [{"prompt": str(i), "kept": i} for i in range(answering.CHUNK + 3)]
    fake = Fake(lambda text, seed, i: f"{text} {seed} {i}")
    done = answering.answered(fake, rows, Answering(sampling=Sampling(seed=5)), tmp_path)
    assert done[1]["answers"] == answers("1 5 0", "1 5 1") and done[-1]["kept"] == len(rows) - 1
    assert done[-1]["answers"][0]["text"] == f"{len(rows) - 1} {5 + answering.CHUNK} 0"
    assert answering.completed([*done[:1], {"prompt": "p", "answers": answers("")}]) == [
        {"prompt": "0", "completion": "0 5 0"}
    ]


def test_prompts_of_rows_of_any_shape():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert asked({"prompt": "p", "answer": 3}, None) == {"prompt": "p", "answer": 3}
    assert asked({"question": "p", "completion": "c"}, {"question": "prompt"}) == {
        "prompt": "p",
        "completion": "c",
        "answer": "c",
    }
    assert asked({"messages": turns}, None) == {"prompt": tuple(turns[:1])}
    assert asked({"prompt": "p", "chosen": "a", "rejected": "b"}, None)["prompt"] == "p"
    assert asked(Example("p", "t", task="k"), None) == {"prompt": "p", "answer": "t", "task": "k"}
    with pytest.raises(Fault, match="a row without a prompt, and these are to be answered"):
        asked({"text": "t"}, None)


def test_rounds_draw_further_prompts():
    world = Prompts(World("manners", "prompts"), count=5, held_out=3)
    first, second = world.training(), world.training(5)
    assert len(first) == len(second) == 5 and first != second and first == world.training()
    assert len(world.kept_apart()) == 3 and "answer" in first[0]
    built_in = Prompts(BuiltIn(), held_out=2)
    assert len(built_in.training()) > 20 and len(built_in.kept_apart()) == 2
    assert not {row["prompt"] for row in built_in.training()} & {row["prompt"] for row in built_in.kept_apart()}


# --- judging


def likes_short(text):
    """Of the nano set's judge prompt, the shorter answer; letter A gets something for standing first."""
    a, b = (line[3:] for line in text.splitlines() if line[:3] in ("A: ", "B: "))
    logit = len(b) - len(a) + 0.5
    return -math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))


NANO = Judging(principles="nano", prompt="nano")
PAIRS = [Compared("Q", "x" * (i % 5 + 1), "y" * 3, i, i) for i in range(70)]


def test_pairs_are_judged_and_kept(tmp_path):
    fake = Fake(None, likes_short)
    rulings = judging.judged(judging.court(NANO), fake, PAIRS, tmp_path)
    assert len(fake.asked) == 140
    for ruling in rulings:
        difference = 3 - len(ruling.pair.one)
        assert (ruling.verdict.probability > 0.5) == (difference > 0)
    told = judging.statistics(rulings)
    assert told["pairs"] == 70 and told["questions"] == 140 and 0 < told["position bias"] < 0.1
    assert told["letters' share"] == pytest.approx(1)
    again = Fake(None, None)
    assert judging.judged(judging.court(NANO), again, PAIRS, tmp_path) == rulings and not again.asked
    kept = [json.loads(line) for line in (tmp_path / judging.JUDGED).read_text().splitlines()]
    assert kept[3]["one"] == "xxxx" and len(kept[3]["said"]) == 2


def test_a_judge_thinks_before_it_judges(tmp_path):
    config = Judging(reasoning="general", how="written", each=2)
    fake = Fake(lambda text, seed, i: f"{seed}: maybe" if "step by step" in text else "A.")
    (ruling,) = judging.judged(judging.court(config), fake, PAIRS[:1], tmp_path)
    assert ruling.verdict.probability == 0.5 and ruling.verdict.reason == "tie"  # it says A whichever that is
    assert sum("0: maybe" in text for text in fake.asked) == 4
    assert judging.statistics([ruling])["position bias"] == 0.5


def rulings(*verdicts):
    said = [{"principle": "kind", "swapped": False, "first": 0.5, "share": 1.0}]
    return [
        Ruling(Compared("Q", f"a{i}", f"b{i}", i, i), said, Verdict(p, p, p, 1.0, reason))
        for i, (p, reason) in enumerate(verdicts)
    ]


SOME = rulings((0.9, "judged"), (0.2, "judged"), (0.6, "tie"), (math.nan, "neither"), (0.5, "tie"))


def told(rows):
    return [(row["chosen"], row["rejected"], row["probability"], row["weight"]) for row in rows]


def test_verdicts_become_preferences():
    rows, counts = judging.preferences(SOME, NANO)
    assert told(rows) == [("a0", "b0", 0.9, 1.0), ("b1", "a1", 0.8, 1.0)]
    assert counts == {"ties": 2, "neither": 1} and rows[0]["principle"] == "kind"
    rows, _ = judging.preferences(SOME, replace(NANO, labels="confidence"))
    assert [row["weight"] for row in rows] == [0.8, 0.6]
    rows, counts = judging.preferences(SOME, replace(NANO, labels="soft", ties="keep", neither="tie"))
    assert told(rows[:2]) == [("a0", "b0", 0.9, 0.9), ("b0", "a0", 0.1, 0.1)]
    assert len(rows) == 10 and told(rows)[6:8] == [("a3", "b3", 0.5, 0.5), ("b3", "a3", 0.5, 0.5)]
    rows, counts = judging.preferences(SOME, replace(NANO, ties="keep"))
    assert told(rows)[2:] == [("a2", "b2", 0.6, 1.0)] and counts == {"ties": 1, "neither": 1}


def test_the_best_answer_against_the_worst():
    beats = {("a", "b"): 0.9, ("a", "c"): 0.6, ("b", "c"): 0.3}
    some = [
        Ruling(Compared("Q", *pair, i, 4), [], Verdict(p, p, p, 1.0, "judged"))
        for i, (pair, p) in enumerate(beats.items())
    ]
    rows, counts = judging.preferences([*some, SOME[3]], NANO, "extremes")
    (row,) = rows  # a wins 0.75, b 0.2, c 0.55
    assert (row["chosen"], row["rejected"], row["probability"]) == ("a", "b", pytest.approx(0.775))
    assert counts == {"ties": 0, "neither": 1}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"letters": ("A", "AB")}, "neither begins the other"),
        ({"each": 9}, "a pair is judged by 1 to 4 of the principles"),
        ({"tie": 0.5}, "they are below one half and below 1"),
        ({"prompt": "none.txt"}, r"no file none.txt \(judge\)"),
        ({"reasoning": "general"}, "the set 'nano' has no reasoned_judge.txt; .* take that of general"),
    ],
)
def test_what_a_judge_cannot_work_with(changes, message):
    with pytest.raises(Fault, match=message):
        judging.court(replace(NANO, **changes))


# --- revising


def test_answers_are_criticised_and_revised(tmp_path):
    config = Revising("nano", "nano", "", "nano", "", rounds=2, sampling=Sampling(seed=100))
    names = [one.name for one in revising.editor(config).principles]

    def says(text, seed, i):
        last = text.splitlines()[-1]
        if "What is wrong" in text:
            return "" if "old 7" in text else f"new {text.splitlines()[1]} {seed}"
        return f"critique {seed}" if "The answer" in text else f"old {last}"

    rows = [{"prompt": str(i), "answer": i} for i in range(9)]
    found = revising.revised(revising.editor(config), Fake(says), rows, tmp_path)
    one = found[2]
    assert one["draft"] == "old 2" and one["answer"] == 2  # the row's own, which measures may need
    assert one["revision"] == "new The answer: new The answer: old 2 102 104" == one["rounds"][1]["revision"]
    assert [said["critique"] for said in one["rounds"]] == ["critique 101", "critique 103"]
    assert len({said["principle"] for said in one["rounds"]} & set(names)) == 2
    assert found[7]["revision"] == found[7]["draft"] == "old 7"
    tuned, counts = revising.learnable(found, config)
    assert counts == {"revisions": 9, "empty revisions": 2, "unchanged revisions": 0}
    assert tuned[2] == {"prompt": "2", "completion": one["revision"]}
    every, counts = revising.learnable(found, replace(config, learn="all"))
    assert len(every) == 18 == counts["revisions"] and revising.after(found, 0)[2] == one["rounds"][0]["revision"]
    assert revising.after(found, 1)[7] == "old 7"
    with pytest.raises(Fault, match="not one of 1 answers could be revised: the model wrote nothing"):
        revising.learnable([{"prompt": "p", "draft": "", "rounds": [{"revision": ""}]}], config)


def test_revisions_without_a_critique(tmp_path):
    config = Revising(critique="", rounds=1)
    fake = Fake(lambda text, seed, i: "better")
    (row,) = revising.revised(revising.editor(config), fake, [{"prompt": "p"}], tmp_path)
    assert row["revision"] == "better" and "critique" not in row["rounds"][0] and len(fake.asked) == 2
    with pytest.raises(Fault, match="revising.rounds is 0; an answer is revised at least once"):
        revising.editor(replace(config, rounds=0))


# --- what is learned from


def test_preferences_of_models_and_of_people_are_mixed(tmp_path):
    path = tmp_path / "pairs.jsonl"
    assert learning.mixed({"ai": (path, 1.0)}, {}, tmp_path) == Files((str(path),))
    human = Also(World("manners", "preference"), weight=0.5, count=7)
    found = learning.mixed({"ai": (path, 1.0)}, {"human": human}, tmp_path)
    assert isinstance(found, Mixed) and found.weighting.given == {"ai": 1.0, "human": 0.5}
    written = found.sources["human"]
    rows = [json.loads(line) for line in (tmp_path / "human.jsonl").read_text().splitlines()]
    assert written.train.endswith("human.jsonl") and len(rows) == 7 and "chosen" in rows[0]
    with pytest.raises(Fault, match="'ai' is what the run calls its own rows"):
        learning.mixed({"ai": (path, 1.0)}, {"ai": human}, tmp_path)


def test_a_run_with_too_few_rows_measures_nothing(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(sft, "main", lambda config, folder: ran.append((config, folder)))
    for count in (1, 30):
        path = tmp_path / f"{count}.jsonl"
        path.write_text('{"prompt": "p", "completion": "c"}\n' * count)
        learning.trained_in(tmp_path / "run", sft.Config("x"), sft.Pretrained(), Files(str(path)))
    (few, folder), (enough, _) = ran
    assert few.train.eval_every == 0 and enough.train.eval_every == 100 and folder == tmp_path / "run"
    assert few.run == str(folder) and enough.data == Files(str(tmp_path / "30.jsonl"))
