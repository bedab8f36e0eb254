# SPDX-License-Identifier: Apache-2.0
"""What is kept from training is kept from training."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.mixtures import Weights
from jaxpost.data.nano import TASKS
from jaxpost.faults import Fault
from jaxpost.recipes import corpus as corpora
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
    with pytest.raises(Fault, match="data.test reads rows that data.train reads, of .*rows.csv"):
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
    assert [list(row.values())[0] for row in kept] == ["6", "8", "7", "8", "9", "9"], "each source's in its order"
    assert [sorted(row) for row in kept] == [
        [name] for name in ("prompt", "text", "prompt", "prompt", "text", "prompt")
    ]
    assert corpus.columns is None and len(trained.files) == len(kept.files) == 2
    seen = [trained.at(epoch, i).get("text") for epoch in range(4) for i in range(6)]
    assert set(seen) == set("01234567"), "what is held out is never trained"


def test_the_first_held_out_rows_of_a_mixture_are_of_every_source(tmp_path):
    sources = {}
    for name in "ab":
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(300)))
        sources[name] = Files(str(path), hold=200)
    kept = Mixed(sources).held_out(0)
    first = [kept[i]["text"] for i in range(128)]
    assert {name: sum(text.startswith(name) for text in first) for name in "ab"} == {"a": 64, "b": 64}
    assert sorted(row["text"] for row in kept) == sorted(f"{name} {i}" for name in "ab" for i in range(100, 300))
    with pytest.raises(IndexError):
        kept[400]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
def test_rows_are_dealt_in_proportion(sizes):
    """Among the first rows, each source has its share, to less than one."""
    dealt = corpora._Dealt(tuple([(part, i) for i in range(size)] for part, size in enumerate(sizes)))
    rows = list(dealt)
    assert sorted(rows) == [(part, i) for part, size in enumerate(sizes) for i in range(size)]
    for part, size in enumerate(sizes):
        assert [i for other, i in rows if other == part] == list(range(size))
        for n in range(len(rows)):
            have = sum(other == part for other, _ in rows[:n])
            assert abs(have - size * n / len(rows)) < len(sizes)


@pytest.fixture
def documents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {"train": [{"text": f"train {i}"} for i in range(6)], "test": [{"text": f"test {i}"} for i in range(3)]}
    (tmp_path / "both.json").write_text(json.dumps(rows))
    (tmp_path / "list.json").write_text(json.dumps(rows["train"]))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.json").symlink_to(tmp_path / "list.json")
    return tmp_path


@pytest.mark.parametrize(
    "apart",
    [
        {"train": "both.json", "test": "both.json", "split": "train", "test_split": "test"},
        {"train": "both.json", "test": "./both.json"},  # by itself the test split
        {"train": "list.json", "test": "list.json", "split": "train[:4]", "test_split": "train[4:]"},
        {"train": "list.json", "test": "both.json"},
    ],
)
def test_splits_of_one_file_are_apart(documents, apart):
    trained, kept = Files(**apart).training(0), Files(**apart).held_out(0)
    assert not set(read(trained)) & set(read(kept)) and len(kept) in (2, 3)


@pytest.mark.parametrize(
    "same",
    [
        {"train": "list.json", "test": ("list.json",)},
        {"train": "list.json", "test": "./sub/../list.json"},
        {"train": "list.json", "test": "l*.json"},
        {"train": "list.json", "test": "sub"},
        {"train": "sub/link.json", "test": "list.json"},
        {"train": ("both.json", "list.json"), "test": "list.json"},
        {"train": "list.json", "test": "list.json", "split": "train[:4]", "test_split": "train[3:]"},
        {"train": "both.json", "test": "both.json", "test_split": "train"},
    ],
)
def test_what_is_trained_on_is_not_measured_on(documents, same):
    of = Files(**same)
    for part in (of.training, of.held_out) if same["test"] != "sub" else (of.training,):
        with pytest.raises(Fault, match="data.test reads rows that data.train reads, of .*(list|link|both).json among"):
            part(0)


def test_no_source_of_a_mixture_trains_on_what_another_holds_out(files):
    rows, table = str(files / "rows.jsonl"), str(files / "rows.csv")
    kept = Files(rows, hold=2)
    for beside in (Files((rows, table), hold=2), Files(rows, hold=1), Files(rows, test=table)):
        with pytest.raises(Fault, match="data.sources: 'b' trains on rows of .*rows.jsonl that 'a' holds out"):
            Mixed({"a": kept, "b": beside}).training(0)
    for beside in (kept, Files(rows, split="train[:8]", hold=0), Files((table, rows), hold=2)):
        assert len(Mixed({"a": kept, "b": beside}).training(0)) > 8


def test_a_run_reads_its_files_once(files, tmp_path, monkeypatch):
    (tmp_path / "other.jsonl").write_text('{"text": "other"}\n')
    opened = []
    monkeypatch.setattr(
        corpora.sources,
        "read",
        lambda path, *how, real=corpora.sources.read: (opened.append(path), real(path, *how))[1],
    )
    one, other = str(files / "rows.csv"), str(tmp_path / "other.jsonl")
    for held, reads in ((Files(one, hold=3), [one]), (Files(one, test=other), [one, other])):
        opened.clear()
        trained = held.training(0)
        kept = [held.held_out(0), held.held_out(1)]
        assert opened == reads and len({*read(kept[0]), *read(trained)}) == len(kept[0]) + len(trained)
        del trained, kept
        assert len(held.held_out(0)) in (3, 1) and len(opened) == len(reads) + 1, "nothing is held for nobody"
        trained = held.training(0)
        opened.clear()
        assert len(held.training(0)) == len(trained) and opened == reads, "who trains anew reads anew"


def test_where_a_model_is_measured_the_training_rows_may_be_missing(files, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"text": "other"}\n')
    assert read(Files(str(files / "gone.jsonl"), test=str(tmp_path / "other.jsonl")).held_out(0)) == ["other"]


def test_prepared_data_sets(shared_data):
    for version in ("3.0.1", "3.0.2"):
        corpus = Tfds(f"c4/en:{version}", str(shared_data / "tfds"), split="train[:50%]", hold=100)
        assert (len(corpus.training(0)), len(corpus.held_out(0))) == (400, 100)
        validated = Tfds(f"c4/en:{version}", str(shared_data / "tfds"), test="validation")
        assert (len(validated.training(0)), len(validated.held_out(0))) == (1000, 200)
        parts = Tfds(f"c4/en:{version}", str(shared_data / "tfds"), split="train[:90%]", test="train[900:]")
        assert (len(parts.training(0)), len(parts.held_out(0))) == (900, 100)
        for part in (replace(parts, test="train[899:]").training, replace(parts, test="train[899:]").held_out):
            with pytest.raises(Fault, match="data.test reads rows that data.train reads, of .*-train"):
                part(0)
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


@pytest.mark.parametrize("rows, held", [(9, 0), (40, 4), (2600, 256)])
def test_what_is_held_out_where_nothing_is_said(tmp_path, rows, held):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "row {i}"}}\n' for i in range(rows)))
    files = Files(str(path))
    assert (len(files.training(0)), len(files.held_out(0))) == (rows - held, held)
