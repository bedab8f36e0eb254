# SPDX-License-Identifier: Apache-2.0
"""What is kept from training is kept from training."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.mixtures import Weights
from jaxpost.data.nano import TASKS
from jaxpost.faults import Fault
from jaxpost.recipes.corpus import Files, Mixed, Tasks, Tfds, Tokens

CLUSTERS = sorted({task.cluster for task in TASKS.values()})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Ten rows, as text and as tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(10)))
    (folder / "rows.csv").write_text("text\n" + "".join(f"{i}\n" for i in range(10)))
    np.save(folder / "rows.npy", np.arange(50).reshape(10, 5))
    return folder


def read(rows):
    return [row["text"] if isinstance(row, dict) else row.ids.tolist() for row in rows]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.npy"])
@pytest.mark.parametrize("hold", [0, 1, 9])
def test_the_last_rows_are_kept(files, name, hold):
    path = str(files / name)
    corpus = Tokens(path, hold) if name == "rows.npy" else Files(path, hold=hold)
    trained, kept = corpus.training(0), corpus.held_out(0)
    assert (len(trained), len(kept)) == (10 - hold, hold)
    expected = np.arange(50).reshape(10, 5).tolist() if name == "rows.npy" else [str(i) for i in range(10)]
    assert read(trained) + read(kept) == expected


@pytest.mark.parametrize("hold", [-1, 10, 256])
def test_as_many_as_there_are_cannot_be_kept(files, hold):
    for corpus in (Files(str(files / "rows.jsonl"), hold=hold), Tokens(str(files / "rows.npy"), hold)):
        for part in (corpus.training, corpus.held_out):
            with pytest.raises(Fault, match=f"data.hold is {hold}, and .* has 10 rows"):
                part(0)


def test_a_file_of_its_own_may_be_kept(files):
    corpus = Files(str(files / "rows.jsonl"), test=str(files / "rows.csv"))
    assert len(corpus.training(0)) == len(corpus.held_out(0)) == 10


def test_other_files_are_no_rows(files):
    with pytest.raises(Fault, match="rows are read from .parquet, .*, .jsonl"):
        Files(str(files / "rows.npy")).training(0)


def test_several_files_are_one_and_directories_have_splits(files, tmp_path):
    several = Files((str(files / "rows.jsonl"), str(files / "rows.csv")), hold=5)
    assert read(several.training(0)) == [str(i) for i in (*range(10), *range(5))]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text((files / "rows.jsonl").read_text())
    corpus = Files(str(tmp_path), test=str(tmp_path), split="train[:40%]")
    assert (len(corpus.training(0)), len(corpus.held_out(0))) == (4, 10)
    assert corpus.held_out(0)[0].where.endswith("validation.jsonl:1")
    with pytest.raises(Fault, match="data.test reads files that data.train reads, .*rows.csv"):
        Files(str(files / "rows.csv"), test=str(files / "rows.csv")).held_out(0)
    assert corpus.training(0).files == (tmp_path / "train.jsonl",)


def test_rows_of_another_shape_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"prompt": "b", "completion": "c"}\n{"text": "d"}\n')
    rows = Files(str(tmp_path / "a.jsonl"), hold=1).training(0)
    assert rows[0]["text"] == "a"
    with pytest.raises(Fault, match="of two shapes in one source: .*a.jsonl:1 is 'text'.*a.jsonl:2 is 'completion'"):
        rows[1]


def test_files_that_are_mixed_come_under_our_names(files):
    texts = Files(str(files / "rows.jsonl"), hold=2)
    asked = Files(str(files / "rows.csv"), hold=4, columns={"text": "prompt"})
    corpus = Mixed({"texts": texts, "asked": asked}, Weights({"texts": 3.0, "asked": 1.0}), size=8)
    trained, kept = corpus.training(0), corpus.held_out(0)
    assert [sorted(row) for row in trained] == [["text"]] * 6 + [["prompt"]] * 2
    assert [*kept] == [{"text": "8"}, {"text": "9"}, *({"prompt": str(i)} for i in range(6, 10))]
    assert corpus.columns is None and len(trained.files) == len(kept.files) == 2
    seen = [trained.at(epoch, i).get("text") for epoch in range(4) for i in range(6)]
    assert set(seen) == set("01234567"), "what is held out is never trained"


def test_prepared_data_sets(shared_data):
    for version in ("3.0.1", "3.0.2"):
        corpus = Tfds(f"c4/en:{version}", str(shared_data / "tfds"), split="train[:50%]", hold=100)
        assert (len(corpus.training(0)), len(corpus.held_out(0))) == (400, 100)
        validated = Tfds(f"c4/en:{version}", str(shared_data / "tfds"), test="validation")
        assert (len(validated.training(0)), len(validated.held_out(0))) == (1000, 200)
    with pytest.raises(Fault, match="no data set 'c5'.*did you mean c4"):
        Tfds("c5", str(shared_data / "tfds")).training(0)


@given(st.sets(st.sampled_from(CLUSTERS), max_size=4), st.sets(st.sampled_from(CLUSTERS), max_size=3))
def test_held_out_clusters_are_not_trained(only, held_out):
    corpus = Tasks(only=tuple(sorted(only - held_out)), held_out_clusters=tuple(sorted(held_out)))
    division = corpus.division()
    names = {task.cluster for task in division.train}
    assert not names & held_out
    if only - held_out:
        assert names == only - held_out
    assert {task.cluster for task in division[2]} == held_out


def test_held_out_tasks_are_not_trained_and_test_rows_are_others():
    corpus = Tasks(only=("arithmetic", "sentiment"), held_out_tasks=("mood",))
    trained, kept = corpus.training(0), corpus.held_out(0)
    assert "mood" not in {trained[i].task for i in range(300)} | {kept[i].task for i in range(len(kept))}
    seen = {(trained[i].prompt, trained[i].target) for i in range(300)}
    assert not seen & {(kept[i].prompt, kept[i].target) for i in range(len(kept))}


def test_names_that_there_are_none_of():
    with pytest.raises(Fault, match="no cluster 'arithmetik'; did you mean arithmetic"):
        Tasks(only=("arithmetik",)).training(0)
    with pytest.raises(Fault, match="'moode'.*did you mean mood"):
        Tasks(held_out_tasks=("moode",)).training(0)
