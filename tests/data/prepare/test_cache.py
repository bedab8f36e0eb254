# SPDX-License-Identifier: Apache-2.0
"""What is made once: by one of many, whole or not at all, and never mistaken for something else."""

import copy
import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from jaxpost.data.batches.loader import Loader, Single, read
from jaxpost.data.batches.pairs import Pairs, Rankings
from jaxpost.data.blend import Blend
from jaxpost.data.chat.jinja import Jinja
from jaxpost.data.chat.template import Own
from jaxpost.data.prepare import cache
from jaxpost.data.sources import jsonl
from jaxpost.data.sources.stored import NotKept, kept
from jaxpost.data.stats import as_groups
from jaxpost.faults import Fault

ROWS = [{"prompt": f"What is {i} + {i}?", "completion": "one " * (i % 7) + str(2 * i)} for i in range(23)]
PAIRS = [
    {"prompt": "a\n", "chosen": "b", "rejected": "b"},
    {"prompt": "a\n", "chosen": "b", "rejected": "c", "votes": [0, 0, 1]},
] + [
    {"prompt": f"What is {i}?\n", "chosen": "the dog " * (i % 5) + "cat", "rejected": "mat"}
    | ({"margin": i / 8} if i % 3 else {})
    for i in range(9)
]
RANKINGS = [
    {"prompt": "Name a pet.\n", "completions": ["mat", "dog", "cat"][:n], "scores": [0, 1, 3][:n]} for n in (2, 3, 2)
]


class Filed(list):
    """Rows that say which files they are of."""

    def __init__(self, rows, files):
        super().__init__(rows)
        self.files = files


def jsonl_of(written, name, rows):
    return jsonl(written(name, "".join(json.dumps(row) + "\n" for row in rows)))


@pytest.mark.parametrize(("unit", "rows"), [(Single(), ROWS), (Pairs(), PAIRS), (Rankings(), RANKINGS)])
def test_what_is_read_back_is_what_was_read(tokenizer, tmp_path, monkeypatch, unit, rows):
    monkeypatch.setattr(cache, "TOGETHER", 2)  # and so more calls than one
    found = cache.tokenised(rows, tokenizer, unit, root=tmp_path)
    assert len(found) == len(rows)
    for i in (*range(len(rows)), -1):
        group, wanted = found[i], read([rows[i]], unit, tokenizer, None, "completion")[0]
        assert group[1:] == wanted[1:] and len(group.members) == len(wanted.members)
        for one, other in zip(group.members, wanted.members, strict=True):
            assert one.ids.dtype == np.int32 and one.trained.dtype == bool
            assert np.array_equal(one.ids, other.ids) and np.array_equal(one.trained, other.trained)
    assert found.lengths.tolist() == [len(tokens.ids) for group in found for tokens in group.members]
    with pytest.raises(IndexError):
        found[len(rows)]


@pytest.mark.parametrize("packing", ["none", "pack", "blocks"])
def test_a_mixture_of_which_some_is_kept_makes_the_same_batches(tokenizer, tmp_path, packing):
    plain = Blend({"small": ROWS[:5], "large": [*ROWS, *ROWS[::-1]]}, seed=2)
    small = cache.tokenised(ROWS[:5], tokenizer, Single(), root=tmp_path)
    half = replace(plain, sources={**plain.sources, "small": small})
    options = {"batch": 2, "seq_len": 48, "packing": packing, "seed": 1}
    one, other = Loader(plain, tokenizer, **options), Loader(half, tokenizer, **options)
    for _ in range(30):
        first, second = one.next(), other.next()
        assert all(np.array_equal(first[name], second[name]) for name in first)
    assert one.save() == other.save()
    groups = as_groups(half, Single(), tokenizer, None, "completion")
    assert [group.size for group in groups] == [
        group.size for group in as_groups(plain, Single(), tokenizer, None, "completion")
    ]


def test_messages_about_a_mixture_name_the_line(tokenizer, tmp_path, written):
    rows = jsonl_of(written, "a.jsonl", ROWS)
    blends = [Blend({"a": part}) for part in (rows, cache.tokenised(rows, tokenizer, Single(), root=tmp_path))]
    plain, kept = (Loader(blend, tokenizer, 1, 64, seed=None) for blend in blends)
    for n in (0, 7, 40):  # of the second epoch too, where the order is another
        row = blends[0].at(*divmod(n, len(ROWS)))
        assert plain.where(n) == kept.where(n) == row.where and "a.jsonl:" in row.where


@pytest.mark.parametrize("packing", ["pack", "blocks"])
def test_a_loader_makes_the_same_of_it(tokenizer, tmp_path, packing):
    options = {"batch": 3, "seq_len": 48, "packing": packing, "seed": 1, "epochs": 2}
    plain = Loader(ROWS, tokenizer, **options)
    cached = Loader(cache.tokenised(ROWS, tokenizer, Single(), root=tmp_path), tokenizer, **options)
    assert plain.batches() == cached.batches() > 2
    for _ in range(plain.batches()):
        one, other = plain.next(), cached.next()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert plain.counts() == cached.counts() and plain.save() == cached.save()


def test_messages_still_name_the_line(tokenizer, tmp_path, written):
    rows = cache.tokenised(jsonl_of(written, "a.jsonl", ROWS), tokenizer, Single(), root=tmp_path)
    with pytest.raises(Fault, match=r"a\.jsonl:1: \d+ tokens, but a row of seq_len 8 holds 9"):
        Loader(rows, tokenizer, 1, 8, seed=None, overlong="error").next()


def test_a_second_reader_tokenises_nothing(tokenizer, tmp_path, written, monkeypatch):
    rows = jsonl_of(written, "a.jsonl", ROWS)
    cache.tokenised(rows, tokenizer, Single(), root=tmp_path)
    monkeypatch.setattr(cache, "_write", lambda *_: pytest.fail("made again"))
    again = cache.tokenised(jsonl(tmp_path / "a.jsonl"), tokenizer, Single(), root=tmp_path)
    assert again[3].size == read([rows[3]], Single(), tokenizer, None, "completion")[0].size


def test_whatever_tokens_depend_on_is_in_the_key(tokenizer, folding, tmp_path, written, monkeypatch):
    rows = Filed(ROWS, [written("a.jsonl", "")])

    def key(rows=rows, tokenizer=tokenizer, unit=None, columns=None, train_on="completion"):
        return cache.key_of_tokens(rows, tokenizer, unit or Single(), columns, train_on)

    keys = [key(), key(tokenizer=folding), key(unit=Pairs()), key(columns={"a": "prompt"}), key(train_on="all")]
    keys += [key(rows=ROWS), key(rows=ROWS[:-1]), key(rows=ROWS[1:]), key(rows=Filed(ROWS[1:], rows.files))]
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    keys.append(key())
    monkeypatch.setattr(cache, "code", lambda: "other code")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_the_date_is_in_the_key_of_templates_that_write_it(tokenizer):
    def known(source, today):
        dated = copy.copy(tokenizer)
        dated._template = Own(Jinja(source, "a.jinja", {}, today))
        assert dated.template is dated._template
        return cache.identity_of(dated)

    dated, plain = "{{ strftime_now('%d %b') }}{{ messages }}", "{{ messages }}"
    days = ("2024-02-29", "2024-03-01")
    assert known(dated, days[0]) == known(dated, days[0]) != known(dated, days[1])
    assert known(plain, days[0]) == known(plain, days[1]) == known(plain, "")
    before = date.today()
    now = known(dated, "")
    assert now in {known(dated, str(day)) for day in (before, date.today())}, "it may be midnight"


def test_a_bad_row_is_named_and_nothing_is_kept(tokenizer, tmp_path, written):
    rows = jsonl_of(written, "a.jsonl", [*ROWS[:4], {"prompt": "a"}, *ROWS])
    with pytest.raises(Fault, match=r"a\.jsonl:5: .*completion"):
        cache.tokenised(rows, tokenizer, Single(), root=tmp_path / "cache", columns={"prompt": "prompt"})
    assert [path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]


def test_a_damaged_entry_is_refused(tokenizer, tmp_path):
    cache.tokenised(ROWS, tokenizer, Single(), root=tmp_path)
    (ids,) = tmp_path.rglob("ids.bin")
    ids.write_bytes(ids.read_bytes()[:-6])
    with pytest.raises(Fault, match="is damaged: remove that folder"):
        cache.tokenised(ROWS, tokenizer, Single(), root=tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match="cannot keep .*JAXPOST_CACHE"):
        cache.once(tmp_path / "file" / "below", "key", lambda draft: None)


def full(path):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_only_what_cannot_be_written_is_not_kept(tmp_path):
    with pytest.raises(NotKept, match="cannot keep .*No space left on device.*JAXPOST_CACHE"):
        cache.once(tmp_path, "key", full)
    with pytest.raises(NotKept, match="cannot keep .*No such file"):
        cache.once(tmp_path, "key", lambda draft: (draft / "no" / "folder").mkdir())
    with pytest.raises(FileNotFoundError, match="source.parquet"):
        cache.once(tmp_path, "key", lambda draft: (tmp_path / "source.parquet").rmdir())
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def test_without_locks_nothing_is_kept_but_what_a_source_needs(tmp_path, monkeypatch):
    import fcntl

    def refuses(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path))
    with pytest.raises(NotKept, match="cannot be locked there: No locks available"):
        cache.once(tmp_path, "key", lambda draft: None)
    assert kept("a", "plain", lambda to: to.touch()).read_text() == ""
    with pytest.raises(NotKept, match="cannot keep other in .*No space left"):
        kept("b", "other", full)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == ["plain"]


def test_of_many_that_need_a_file_one_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path))
    made, found = [], []

    def make(to):
        made.append(1)
        time.sleep(0.2)
        to.write_text("there")

    threads = [threading.Thread(target=lambda: found.append(kept("a", "b", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(found)) == 1 and found[0].read_text() == "there"
    found[0].unlink()
    assert kept("a", "b", make).read_text() == "there" and len(made) == 2, "removed by hand, it is made again"


def test_the_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path
    monkeypatch.delenv("JAXPOST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "jaxpost"


def test_of_many_one_makes_and_the_others_wait(tmp_path):
    made, waited = [], []

    def make(draft):
        made.append(1)
        deadline = time.monotonic() + 60
        while len(waited) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        (draft / "what").write_text("there")

    def ask():
        # Not one process each, but one open file each, which is what the lock goes by.
        entry = cache.once(tmp_path, "key", make, lambda: waited.append(1))
        assert (entry / "what").read_text() == "there"

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(waited) == 3


HANGS = """
import sys, time
from pathlib import Path
from jaxpost.data.prepare import cache

def make(draft):
    (draft / "half").write_text("")
    time.sleep(600)

cache.once(Path(sys.argv[1]), "key", make)
"""


def test_a_killed_process_leaves_neither_a_lock_nor_half_an_entry(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HANGS, str(tmp_path)]) as process:
        while process.poll() is None and not (tmp_path / "key.draft" / "half").exists():
            time.sleep(0.01)
        process.kill()
    entry = cache.once(tmp_path, "key", lambda draft: None)
    assert entry == tmp_path / "key" and not list(entry.iterdir()) and not (tmp_path / "key.draft").exists()
