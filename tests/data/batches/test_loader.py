# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data.batches import loader as module
from jaxpost.data.batches.loader import Counts, Loader, counts_of, join, read
from jaxpost.data.batches.order import Order
from jaxpost.data.mixtures import Mixture
from jaxpost.data.sources import jsonl
from jaxpost.data.tasks import Task, Template
from jaxpost.data.tokenizers import SentencePieceTokenizer
from jaxpost.faults import Fault

PACKINGS = ["none", "pack", "blocks"]
ROWS = [{"prompt": f"What is {i} + {i}?", "completion": "one " * (i % 7) + str(2 * i)} for i in range(23)]


def drain(loader, limit=1000):
    batches = []
    while len(batches) < limit:
        try:
            batches.append(loader.next())
        except StopIteration:
            break
    return batches


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def stacked(shards):
    """The global batches of processes that each made their rows."""
    return [
        {name: np.concatenate([b[name] for b in parts]) for name in parts[0]} for parts in zip(*shards, strict=True)
    ]


def texts(batches, tokenizer):
    """What each segment of the batches says, its last target included."""
    found = []
    for batch in batches:
        for tokens, targets, segments in zip(batch["tokens"], batch["targets"], batch["segments"], strict=True):
            for segment in range(1, segments.max(initial=0) + 1):
                at = segments == segment
                found.append(tokenizer.decode([*tokens[at], targets[at][-1]]))
    return found


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("epochs", [None, 2])
def test_the_number_of_processes_changes_nothing(tokenizer, packing, epochs):
    def batches(count):
        loaders = [
            Loader(ROWS, tokenizer, 4, 64, packing, seed=3, epochs=epochs, process_index=i, process_count=count)
            for i in range(count)
        ]
        return stacked([drain(loader, 16) for loader in loaders])

    alone = batches(1)
    assert len(alone) == 16 if epochs is None else 1 < len(alone) <= 16
    assert alone[0]["tokens"].shape == (4, 64)
    assert same(batches(2), alone) and same(batches(4), alone)


@pytest.mark.parametrize("packing", PACKINGS)
@given(pause=st.integers(0, 12), seed=st.integers(0, 2**32))
@settings(max_examples=6)
def test_resumed_anywhere_it_is_bit_identical(tokenizer, packing, pause, seed):
    def fresh():
        return Loader(ROWS, tokenizer, 3, 48, packing, seed=seed, epochs=3)

    whole, first = fresh(), fresh()
    wanted, head = drain(whole), drain(first, pause)
    saved = json.loads(json.dumps(first.save()))
    second = fresh()
    second.restore(saved)
    assert second.counts() == counts_of(saved)
    assert same(head + drain(second), wanted)
    assert second.counts() == whole.counts()


def test_restoring_tokenises_what_waited_together_and_nothing_else(tokenizer, monkeypatch):
    loader = Loader(ROWS * 9, tokenizer, 4, 64, "pack")
    wanted = drain(loader, 6)
    saved = json.loads(json.dumps(loader.save()))
    wanted = drain(loader, 4)
    calls = []
    monkeypatch.setattr(module, "read", lambda rows, *given: calls.append(len(rows)) or read(rows, *given))
    again = Loader(ROWS * 9, tokenizer, 4, 64, "pack")
    again.restore(saved)
    assert calls == [sum(len(lane["waiting"]) for lane in saved["lanes"].values())] and calls[0] > 20
    assert not again._ahead, "nothing lies there that is never asked for"
    assert same(drain(again, 4), wanted)


@pytest.mark.parametrize("packing", PACKINGS)
def test_resumed_with_another_number_of_processes(tokenizer, packing):
    def loaders(count):
        return [Loader(ROWS, tokenizer, 4, 64, packing, process_index=i, process_count=count) for i in range(count)]

    wanted = drain(loaders(1)[0], 12)
    two = loaders(2)
    head = stacked([drain(loader, 5) for loader in two])
    saved = json.loads(json.dumps(join([loader.save() for loader in two])))
    four = loaders(4)
    for loader in four:
        loader.restore(saved)
    assert same(head + stacked([drain(loader, 7) for loader in four]), wanted)


@pytest.mark.parametrize("packing", ["none", "pack"])
def test_an_epoch_is_every_row_once(tokenizer, packing):
    loader = Loader(ROWS, tokenizer, 4, 64, packing, seed=1, epochs=2)
    seen = texts(drain(loader), tokenizer)
    wanted = sorted(f"{row['prompt']}\n{row['completion']}" for row in ROWS)
    assert sorted(seen) == sorted(2 * wanted)
    if packing == "none":
        first, second = seen[: len(ROWS)], seen[len(ROWS) :]
        assert sorted(first) == sorted(second) == wanted and first != second != wanted


def test_without_packing_lane_i_reads_every_b_th_example(tokenizer):
    loader = Loader(ROWS, tokenizer, 4, 64, seed=None)
    seen = texts(drain(loader, 3), tokenizer)
    assert seen == [f"{row['prompt']}\n{row['completion']}" for row in ROWS[:12]]


def test_the_last_batch_is_filled_with_empty_rows(tokenizer):
    loader = Loader(ROWS, tokenizer, 4, 64, seed=None, epochs=1)
    batches = drain(loader)
    assert len(batches) == loader.batches() == 6
    assert (batches[-1]["segments"].max(1) > 0).tolist() == [True, True, True, False]
    with pytest.raises(StopIteration):
        loader.next()


def test_the_stream_without_epochs_never_ends(tokenizer):
    loader = Loader(ROWS[:2], tokenizer, 3, 64)
    assert len(drain(loader, 50)) == 50
    with pytest.raises(Fault, match="endless"):
        loader.batches()


@given(st.integers(1, 200), st.integers(0, 2**32), st.integers(0, 3))
def test_every_pass_of_an_order_is_a_permutation(rows, seed, number):
    order = Order(rows, seed)
    found = [order(number * rows + i) for i in range(rows)]
    assert {at for at, _ in found} == {number} and sorted(row for _, row in found) == list(range(rows))


def test_seeds_and_passes_shuffle_apart():
    def epoch(seed, number):
        return [Order(50, seed)(50 * number + i)[1] for i in range(50)]

    shuffles = [epoch(seed, number) for seed in (0, 1, 2) for number in (0, 1, 2)]
    assert all(a != b for i, a in enumerate(shuffles) for b in shuffles[:i])
    assert epoch(0, 1) == epoch(0, 1)


def test_completions_are_trained_and_prompts_are_not(tokenizer):
    batch = Loader([{"prompt": "The cat", "completion": "sat"}], tokenizer, 1, 32).next()
    trained = batch["targets"][batch["mask"] == 1]
    assert tokenizer.decode(trained) == "sat" and trained[-1] == tokenizer.eos
    everything = Loader([{"prompt": "The cat", "completion": "sat"}], tokenizer, 1, 32, train_on="all").next()
    assert everything["mask"].sum() == (everything["segments"] > 0).sum() > batch["mask"].sum()


def test_longer_than_the_limit_is_cut_and_counted(tokenizer):
    long = {"prompt": "The cat", "completion": "sat " * 60}
    loader = Loader([long, ROWS[0]], tokenizer, 2, 32, seed=None, epochs=1)
    batch = loader.next()
    assert (batch["segments"][0] == 1).all() and batch["targets"][0, -1] != tokenizer.eos
    counts = loader.counts()
    assert (counts.examples, counts.truncated, counts.dropped, counts.rows) == (2, 1, 0, 2)


def test_longer_than_the_limit_is_left_out_and_counted(tokenizer):
    long = {"prompt": "The cat", "completion": "sat " * 60}
    loader = Loader([long, *ROWS[:3]], tokenizer, 2, 32, "pack", epochs=1, overlong="drop")
    assert len(texts(drain(loader), tokenizer)) == 3
    assert (loader.counts().examples, loader.counts().overlong, loader.counts().dropped) == (4, 1, 1)


def test_longer_than_the_limit_is_an_error_if_asked(tokenizer, written):
    path = written("a.jsonl", json.dumps({"text": "sat " * 60}) + "\n")
    with pytest.raises(Fault, match=r"a\.jsonl:1: \d+ tokens, but a row of seq_len 32 holds 33"):
        Loader(jsonl(path), tokenizer, 1, 32, overlong="error").next()


def test_what_exactly_fits_is_not_cut(tokenizer):
    length = len(tokenizer.encode("The cat sat on the mat")) + 2
    for seq_len, truncated in ((length - 1, 0), (length - 2, 1)):
        loader = Loader([{"text": "The cat sat on the mat"}], tokenizer, 1, seq_len)
        loader.next()
        assert loader.counts().truncated == truncated


def test_a_prompt_that_leaves_no_room_is_left_out_and_counted(tokenizer):
    full = {"prompt": "The cat " * 30, "completion": "sat"}
    loader = Loader([full, *ROWS[:3]], tokenizer, 2, 32, epochs=1)
    assert len(texts(drain(loader), tokenizer)) == 3
    assert (loader.counts().truncated, loader.counts().untrained, loader.counts().dropped) == (1, 1, 1)


@pytest.mark.parametrize("epochs", [None, 1])
@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_nothing_left_to_train_on_is_an_error(tokenizer, epochs, overlong):
    full = [{"prompt": "The cat " * 30, "completion": "sat"}] * 5
    with pytest.raises(Fault, match="left out|not one example") as caught:
        Loader(full, tokenizer, 2, 32, "pack", epochs=epochs, overlong=overlong).next()
    assert "raise seq_len" in str(caught.value)


def test_bad_input(tokenizer, written):
    with pytest.raises(Fault, match="the data set is empty"):
        Loader([], tokenizer, 2, 32)
    with pytest.raises(Fault, match="a batch of 6 rows cannot be shared equally by 4 processes"):
        Loader(ROWS, tokenizer, 6, 32, process_count=4)
    rows = jsonl(written("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n'))
    with pytest.raises(Fault, match=r"a\.jsonl:2: a prompt alone"):
        drain(Loader(rows, tokenizer, 1, 32, epochs=1))
    rows = jsonl(written("b.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}\n'))
    with pytest.raises(Fault, match=r"b\.jsonl:1: no token of it would be trained"):
        Loader(rows, tokenizer, 1, 32).next()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": 4}, "batch 2, which now is 4"),
        ({"packing": "blocks"}, "packing 'none', which now is 'blocks'"),
        ({"rows": ROWS[:9]}, "rows 23, which now is 9"),
        ({"seed": 1}, "seed 0, which now is 1"),
    ],
)
def test_a_position_of_another_stream_is_refused(tokenizer, change, says):
    made = {"rows": ROWS, "tokenizer": tokenizer, "batch": 2, "seq_len": 32}
    with pytest.raises(Fault, match=says):
        Loader(**made | change).restore(Loader(**made).save())


def test_positions_are_joined_of_all_processes_at_one_step(tokenizer):
    one, two = (Loader(ROWS, tokenizer, 4, 32, process_index=i, process_count=2).save() for i in range(2))
    with pytest.raises(Fault, match=r"lacks lanes \[2, 3\]"):
        Loader(ROWS, tokenizer, 4, 32).restore(one)
    with pytest.raises(Fault, match="at steps 0 and 3"):
        join([one, two | {"step": 3}])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"packing": "packed"}, "no packing 'packed'; did you mean pack"),
        ({"overlong": "cut"}, "no overlong 'cut'; known: drop, error, truncate"),
        ({"seq_len": 0}, "seq_len must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_settings_that_cannot_be(tokenizer, setting, says):
    with pytest.raises(Fault, match=says):
        Loader(**{"rows": ROWS, "tokenizer": tokenizer, "batch": 2, "seq_len": 32} | setting)


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_counts_are_what_the_batches_hold(tokenizer, packing):
    loader = Loader(ROWS, tokenizer, 4, 64, packing, epochs=1)
    batches = drain(loader)
    counts = loader.counts()
    assert counts.examples == len(ROWS)
    assert counts.tokens == sum(int((batch["segments"] > 0).sum()) for batch in batches)
    assert counts.trained == sum(int(batch["mask"].sum()) for batch in batches)
    assert counts.rows == sum(int((batch["segments"].max(1) > 0).sum()) for batch in batches)
    assert counts.fill == counts.tokens / (64 * counts.rows)
    assert Counts() + counts == counts


def test_a_mixture_shows_other_rows_in_the_next_epoch(tokenizer):
    rows = [{"text": f"number {i}", "answer": str(i)} for i in range(10)]
    task = Task("count", "numbers", lambda split: rows, (Template("{text}", "{answer}"),))
    mixture = Mixture((task,), size=5)
    seen = texts(drain(Loader(mixture, tokenizer, 1, 32, epochs=2)), tokenizer)
    assert sorted(seen) == sorted(f"number {i}\n{i}" for i in range(10))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_fault_in_one_lane_leaves_all_where_they_were(tokenizer, packing):
    """What is saved after a fault is the position behind the last batch, and goes on once the row is mended."""
    sound = ROWS * 8
    broken = [*sound]
    broken[178] = {"prompt": "a"}  # of the third of four lanes
    options = {"batch": 4, "seq_len": 32, "packing": packing, "seed": None, "epochs": 1}
    loader, whole = Loader(broken, tokenizer, **options), Loader(sound, tokenizer, **options)
    head = []
    with pytest.raises(Fault, match="a prompt alone"):
        while True:
            saved = loader.save()
            head.append(loader.next())
    assert loader.save() == saved and head
    with pytest.raises(Fault, match="a prompt alone"):
        loader.next()
    mended = Loader(sound, tokenizer, **options)
    mended.restore(json.loads(json.dumps(loader.save())))
    assert same(head + drain(mended), drain(whole)) and mended.counts() == whole.counts()


def test_importing_the_loader_brings_neither_jax_nor_grain():
    code = (
        "import sys, jaxpost.data.batches.loader, jaxpost.data.mixtures; print(*{'jax', 'grain'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_real_problems(shared_data):
    tokenizer = SentencePieceTokenizer.load(shared_data / "tokenizers" / "mistral-v1.model")
    rows = jsonl(shared_data / "gsm8k" / "train.jsonl")
    loader = Loader(rows, tokenizer, 4, 512, "pack", columns={"question": "prompt", "answer": "completion"})
    batches = drain(loader, 20)
    assert loader.counts().fill > 0.85
    for text in texts(batches[:2], tokenizer):
        assert "\n#### " in text
    trained = tokenizer.decode(batches[0]["targets"][0][batches[0]["mask"][0] == 1])
    assert "####" in trained and "?" not in trained[-40:]
