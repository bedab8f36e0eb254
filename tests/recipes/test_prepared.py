# SPDX-License-Identifier: Apache-2.0
"""Rows made ready once: which are, which are not, and that a run is the same with them."""

import errno
import fcntl
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from jaxpost.data.batches.loader import Single
from jaxpost.data.blend import Blend
from jaxpost.data.prepare import cache
from jaxpost.data.prepare.cleaning import Cleaning
from jaxpost.data.sources import jsonl
from jaxpost.data.tokens import TokenRows
from jaxpost.faults import Fault
from jaxpost.recipes import base
from jaxpost.recipes.corpus import Files, Tasks
from jaxpost.recipes.prepared import behind, prepared
from jaxpost.recipes.run import Batches, Training, sources

ROWS = [{"prompt": f"What is {i} plus {i}?", "completion": str(2 * i)} for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    return base.tokenizer_of(base.Pretrained("nano"))


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]))
    return jsonl(path)


def ready(rows, tokenizer, positions=None, console=None, **options):
    return prepared(rows, tokenizer, Batches(**options), None, positions, console or Console(quiet=True))


def test_a_run_that_reads_all_rows_keeps_their_tokens(rows, tokenizer, root):
    assert ready(rows, tokenizer, positions=100) is rows, "it reads a small part"
    assert not root.exists()
    assert isinstance(ready(rows, tokenizer, positions=10**6), cache.Tokenised)
    assert isinstance(ready(rows, tokenizer, positions=100), cache.Tokenised), "they are there"
    assert ready(rows, tokenizer, cache="never") is rows


def test_always_and_never(rows, tokenizer, root):
    assert ready(rows, tokenizer, cache="never") is rows and not root.exists()
    assert isinstance(ready(rows, tokenizer, positions=1, cache="always"), cache.Tokenised)


def test_no_folder_no_tokens(rows, tokenizer, root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "file" / "below"))
    assert ready(rows, tokenizer) is rows
    with pytest.raises(Fault, match="cannot keep .*file.* for later runs.*batches.cache"):
        ready(rows, tokenizer, cache="always")


@pytest.mark.parametrize("what", ["full", "locks"])
def test_a_run_goes_on_where_nothing_can_be_kept(rows, tokenizer, root, monkeypatch, what):
    def refuses(*_):
        raise OSError(errno.ENOSPC if what == "full" else errno.ENOLCK, f"it has no {what}")

    monkeypatch.setattr(*((cache, "_write") if what == "full" else (fcntl, "flock")), refuses)
    console = Console(file=io.StringIO(), width=80)
    found = ready(rows, tokenizer, console=console, cleaning=Cleaning())
    assert len(found) == 40 and found[3] == ROWS[3]
    said = console.file.getvalue().splitlines()
    assert sum(f"it has no {what}" in line for line in said) == (1 if what == "full" else 2), said
    assert "Rows are tokenised as they are read: cannot keep " in said[-1]
    with pytest.raises(Fault, match=f"no {what}.*set batches.cache to 'auto'"):
        ready(rows, tokenizer, cache="always")


def test_a_source_that_cannot_be_read_is_not_said_to_fill_the_disk(rows, tokenizer, root):
    class Gone(list):
        def __getitem__(self, index):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "source.parquet")

    with pytest.raises(FileNotFoundError, match="source.parquet"):
        cache.tokenised(Gone(ROWS), tokenizer, Single())


def test_cleaning_is_said_and_done(rows, tokenizer, root):
    console = Console(file=io.StringIO(), width=200)
    found = ready(rows, tokenizer, console=console, cleaning=Cleaning(min_tokens=2))
    assert len(found) == 40 and "Cleaning keeps 40 of 41 rows: 1 duplicate." in console.file.getvalue()
    assert behind(found)[3] == ROWS[3] and behind(found).place_of(3).endswith("rows.jsonl:4")


def test_tasks_and_tokens_stay_as_they_are(tokenizer, root, tmp_path):
    tasks = Tasks().training(0)
    np.save(tmp_path / "tokens.npy", np.zeros((4, 9), np.uint16))
    for rows in (tasks, TokenRows(tmp_path / "tokens.npy")):
        assert ready(rows, tokenizer) is rows
        with pytest.raises(Fault, match="batches.cleaning is for rows of files"):
            ready(rows, tokenizer, cleaning=Cleaning())


def test_of_a_mixture_each_source_is_made_ready(rows, tokenizer, root):
    blend = Blend({"a": rows, "b": ROWS[:10]}, seed=1)
    found = ready(blend, tokenizer)
    assert all(isinstance(part, cache.Tokenised) for part in found.sources.values())
    plain = behind(found)
    assert plain.sources["a"] is rows
    for n in range(len(blend)):
        assert found.at(2, n).members[0].ids.tolist() == ready(blend, tokenizer).at(2, n).members[0].ids.tolist()
        assert plain.at(2, n) == blend.at(2, n)


def test_a_run_is_the_same_with_and_without_kept_tokens(rows, tokenizer, root, capsys):
    def data(**options):
        config = SimpleNamespace(
            train=Training(steps=0, epochs=2, eval_every=1, eval_batches=1),
            batches=Batches(rows=2, seq_len=64, **options),
            data=Files(rows.name, hold=5),
        )
        return sources(config, tokenizer)

    kept, plain = data(cache="always"), data(cache="never")
    assert "72 examples of " in capsys.readouterr().out
    assert kept.steps == plain.steps > 4
    for source in (kept, plain):
        assert isinstance(source.loader.rows, cache.Tokenised) == (source is kept)
    for one, other in ((kept.source, plain.source), (kept.held_out(), plain.held_out())):
        first, second = one.next(), other.next()
        assert all(np.array_equal(first[name], second[name]) for name in second)
        assert one.save() == other.save()
    kept.source.close()
    plain.source.close()
