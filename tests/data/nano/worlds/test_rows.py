# SPDX-License-Identifier: Apache-2.0
"""Rows of every world and kind: the same everywhere, train apart from test, of the shapes that recipes know."""

import pickle
import subprocess
import sys

import pytest

from jaxpost.data.nano import TASKS, worlds
from jaxpost.data.nano.dice import fingerprint
from jaxpost.data.nano.generated import side
from jaxpost.data.nano.worlds.answers import tasks_of
from jaxpost.data.rows import shapes
from jaxpost.data.tasks import Split
from jaxpost.faults import Fault
from jaxpost.recipes.corpus import World

KINDS = [(world, kind) for world, kinds in worlds.WORLDS.items() for kind in kinds]
SPLITS: tuple[Split, ...] = ("train", "test")
EACH_KIND = pytest.mark.parametrize(("world", "kind"), KINDS, ids=[f"{world}-{kind}" for world, kind in KINDS])
SHAPES = {
    "prompts": shapes.Prompt,
    "plain": shapes.Prompt,
    "preference": shapes.Preference,
    "weak": shapes.Preference,
    "harmless": shapes.Preference,
    "unpaired": shapes.Unpaired,
    "ranking": shapes.Ranking,
}
WORDED = {("manners", kind) for kind in ("sft", "critique", "revision", "judge")}  # by files that are edited
# Fingerprints of the first rows of both splits. They change only when a world is changed on purpose.
GOLDEN = {
    "answers": 6329567309436530637,
    "reviews": 11592823785796072457,
    "manners": 9289802098841649897,
}


def digest(world):
    kinds = [kind for kind in worlds.WORLDS[world] if (world, kind) not in WORDED]
    both = [worlds.rows(world, kind, split)[:5] for kind in kinds for split in SPLITS]
    return fingerprint(repr([dict(row) for rows in both for row in rows]))


@pytest.mark.parametrize("world", GOLDEN)
def test_golden_rows(world):
    assert digest(world) == GOLDEN[world]


def test_another_process_makes_the_same_rows():
    program = (
        "from jaxpost.data.nano import worlds\n"
        f"print([worlds.rows(*kind, 'test', seed=1)[7] for kind in {KINDS}])\n"
        "import sys; assert 'jax' not in sys.modules"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == f"{[worlds.rows(*kind, 'test', seed=1)[7] for kind in KINDS]}\n"


@EACH_KIND
def test_rows_have_a_known_shape_and_say_something(world, kind):
    for row in worlds.rows(world, kind)[:20]:
        assert type(shapes.normalise(row)) is SHAPES.get(kind, shapes.Completion)
        assert row["prompt"].strip() and row["prompt"].endswith("\n")
        said = {"chosen", "rejected", "completion"} & row.keys()
        assert all(row[name].strip() == row[name] != "" for name in said)
        assert row.get("chosen") != row.get("rejected") or "chosen" not in row


@EACH_KIND
def test_rows_are_found_by_their_number(world, kind):
    rows = worlds.rows(world, kind, size=50)
    assert len(rows) == 50 and rows[3:5] == [rows[3], rows[4]] and rows[-1] == rows[49]
    assert rows[3] != rows[4] and rows[3] != worlds.rows(world, kind, seed=1)[3]
    assert pickle.loads(pickle.dumps(rows))[3] == rows[3]
    with pytest.raises(IndexError):
        rows[50]


def test_rows_have_an_identity_without_being_looked_at():
    def identity(**given):
        return worlds.rows("answers", **{"kind": "sft", **given}).identity

    ways = [{}, {"kind": "prompts"}, {"seed": 1}, {"size": 9}, {"only": ("add",)}, {"split": "test"}]
    assert len({identity(**way) for way in ways}) == len(ways)
    assert identity() == identity() and " at 0x" not in identity()


def test_no_prompt_of_a_review_is_on_both_sides():
    def asked(split: Split, seed: int) -> set[str]:
        both = [worlds.rows("reviews", kind, split, seed=seed)[:60] for kind in ("prompts", "sft")]
        return {row["prompt"] for rows in both for row in rows}

    train, test = asked("train", 0), asked("test", 1)
    assert len(train) > 80 and len(test) > 60 and not train & test


def test_a_question_stays_on_its_tasks_own_side():
    """Whoever tuned on the train split of `Tasks` has not seen what these worlds test on."""
    for split in SPLITS:
        for row in worlds.rows("answers", "prompts", split, only=("add",))[:20]:
            a, b = [int(word.strip("?.,")) for word in row["prompt"].split() if word.strip("?.,").isdigit()]
            assert side("add", {"a": a, "b": b}, ("a", "b")) == split


def test_only_some_tasks():
    assert {row["task"] for row in worlds.rows("answers", "sft", only=("arithmetic", "opposite"))[:80]} == {
        "add", "subtract", "multiply", "next_number", "story_sum", "opposite",
    }  # fmt: skip
    assert len(tasks_of()) == len(TASKS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"world": "review", "kind": "sft"}, "did you mean reviews"),
        ({"world": "reviews", "kind": "prompt"}, "did you mean prompts"),
        ({"world": "reviews", "kind": "sft", "only": ("add",)}, "no tasks to choose from"),
        ({"world": "answers", "kind": "sft", "only": ("sums",)}, "no task or cluster 'sums'"),
        ({"world": "answers", "kind": "sft", "size": -1}, "data.size is -1"),
    ],
)
def test_what_there_is_not(given, said):
    with pytest.raises(Fault, match=said):
        worlds.rows(**given)


def test_a_world_is_a_corpus():
    corpus = World("reviews", "weak")
    assert len(corpus.training(0)) == 400 and len(corpus.held_out(0)) == 1000 and corpus.columns is None
    assert len(World("answers", "sft", size=7, only=("add",)).training(0)) == 7
