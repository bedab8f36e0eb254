# SPDX-License-Identifier: Apache-2.0
"""Answers that are compared: whole in one row, the same prompt before each, only what answers it counted."""

import gzip
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data.batches.loader import Loader, counts_of
from jaxpost.data.batches.packing import MOST, Group
from jaxpost.data.batches.pairs import Handling, Pairs, Rankings, comparable, level, shared
from jaxpost.data.batches.unpaired import Verdicts
from jaxpost.data.sources import Record
from jaxpost.data.tokenizers import SentencePieceTokenizer, Tokens
from jaxpost.faults import Fault

ROWS = [
    {"prompt": f"What is {i} + {i}?\n", "chosen": "two " * (i % 5) + str(2 * i), "rejected": "no" + " no" * (i % 7)}
    | ({"margin": i / 4} if i % 2 else {})
    for i in range(17)
]
BOS = 1


def drain(loader):
    batches = []
    with suppress(StopIteration):
        while True:
            batches.append(loader.next())
    return batches


def said(batch, i, segment, tokenizer):
    """What a segment says: the prompt, and what is trained."""
    at = batch["segments"][i] == segment
    trained = batch["mask"][i][at] > 0
    return tokenizer.decode(batch["tokens"][i][at][: np.argmax(trained) + 1]), tokenizer.decode(
        batch["targets"][i][at][trained]
    )


@pytest.mark.parametrize("packing", ["pack", "none"])
def test_both_answers_of_a_pair_are_neighbours_in_one_row(tokenizer, packing):
    loader = Loader(ROWS, tokenizer, 2, 96, packing, seed=1, epochs=1, unit=Pairs())
    seen = []
    for batch in drain(loader):
        assert batch["margin"].shape == batch["weight"].shape == (2, MOST // 2)
        for i in range(2):
            count = int(batch["weight"][i].sum())
            assert batch["segments"][i].max() == 2 * count
            for pair in range(count):
                (prompt, chosen), (same, rejected) = (said(batch, i, 2 * pair + k, tokenizer) for k in (1, 2))
                assert prompt == same
                seen.append((prompt, chosen, rejected, float(batch["margin"][i, pair])))
            assert not batch["margin"][i, count:].any()
    wanted = [(row["prompt"], row["chosen"], row["rejected"], row.get("margin", 0.0)) for row in ROWS]
    assert sorted((p.strip(), *rest) for p, *rest in seen) == sorted((p.strip(), *rest) for p, *rest in wanted)
    if packing == "none":
        assert loader.counts().rows == len(ROWS)


@given(pause=st.integers(0, 8), seed=st.integers(0, 99))
@settings(max_examples=5)
def test_pairs_go_on_where_they_were(tokenizer, pause, seed):
    def fresh():
        return Loader(ROWS, tokenizer, 3, 80, "pack", seed=seed, epochs=2, unit=Pairs())

    whole, first, second = fresh(), fresh(), fresh()
    wanted = drain(whole)
    head = [first.next() for _ in range(min(pause, len(wanted)))]
    saved = json.loads(json.dumps(first.save()))
    second.restore(saved)
    assert second.counts() == counts_of(saved)
    got = head + drain(second)
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in other)


def test_rankings_say_whom_each_segment_answers(tokenizer):
    rows = [
        {"prompt": "Name a pet.\n", "completions": ["the mat", "the dog", "a cat"], "scores": [0, 1, 3]},
        {"prompt": "Say yes.\n", "completions": ["Yes", "No"], "ranks": [1, 2]},
    ]
    batch = Loader(rows, tokenizer, 1, 128, "pack", seed=None, epochs=1, unit=Rankings()).next()
    order = batch["groups"][0][:6].tolist()
    assert sorted(order) == [0, 1, 1, 1, 2, 2] and order[:5] == sorted(order[:5])
    answers = [said(batch, 0, s, tokenizer)[1] for s in range(1, 6)]
    start, other = answers.index("a cat"), answers.index("Yes")
    assert answers[start : start + 3] == ["a cat", "the dog", "the mat"] and answers[other : other + 2] == ["Yes", "No"]
    assert batch["scores"][0][start : start + 3].tolist() == [3.0, 1.0, 0.0]
    assert batch["scores"][0][other : other + 2].tolist() == [-1.0, -2.0]


@st.composite
def groups(draw):
    """A prompt of which each token says where it was (100, 101, ...), and answers (1000 * k, ...) that are trained."""
    prompt = draw(st.integers(0, 30))
    answers = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    head = [BOS, *range(100, 100 + prompt)]
    return Group(
        tuple(
            Tokens(
                np.array([*head, *range(1000 * k, 1000 * k + n)], np.int32),
                np.array([False] * len(head) + [True] * n),
            )
            for k, n in enumerate(answers, start=1)
        )
    )


@given(groups(), st.integers(1, 130))
def test_a_cut_group_stays_comparable(group, room):
    prompt = shared(group.members)
    assert prompt == sum(~group.members[0].trained)
    cut = comparable(group, room, BOS)
    if cut is None:
        assert room < 5 * len(group.members), "there is room enough for a prompt and an answer"
        return
    assert cut.size <= room and len(cut.members) == len(group.members)
    kept = [tokens.ids[~tokens.trained].tolist() for tokens in cut.members]
    assert all(one == kept[0] for one in kept), "one prompt"
    whole = group.members[0].ids[:prompt].tolist()
    assert not kept[0] or kept[0] == [BOS, *whole[prompt - len(kept[0]) + 1 :]], "its bos and its end"
    lengths = [int(tokens.trained.sum()) for tokens in cut.members]
    for tokens, before, length in zip(cut.members, group.members, lengths, strict=True):
        answer = before.ids[before.trained]
        assert tokens.ids[tokens.trained].tolist() == answer[:length].tolist(), "the beginning of the answer"
        assert length == len(answer) or length == max(lengths), "only the longest are cut, all to one length"
    if group.size <= room:
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(cut.members, group.members, strict=True))
    elif len(kept[0]) > 1:
        assert room - cut.size < len(lengths), "what is cut off had no room"


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 80))
def test_the_level_is_the_highest_that_fits(sizes, budget):
    m = level(sizes, budget)
    assert sum(min(size, m) for size in sizes) <= budget
    assert m == max(sizes) or sum(min(size, m + 1) for size in sizes) > budget


def test_pairs_that_differ_only_where_they_were_cut_are_left_out(tokenizer):
    long = "two " * 60
    rows = [{"prompt": "Count.\n", "chosen": long + "1", "rejected": long + "2"}, ROWS[3]]
    loader = Loader(rows, tokenizer, 1, 64, "pack", epochs=1, unit=Pairs())
    assert sum(int(batch["weight"].sum()) for batch in drain(loader)) == 1
    assert (loader.counts().truncated, loader.counts().untrained) == (1, 1)


def test_pairs_too_long_are_counted_or_refused(tokenizer):
    rows = [{"prompt": "Count.\n", "chosen": "two " * 60, "rejected": "one"}, ROWS[3]]
    loader = Loader(rows, tokenizer, 1, 64, "pack", epochs=1, overlong="drop", unit=Pairs())
    assert sum(int(batch["weight"].sum()) for batch in drain(loader)) == 1 and loader.counts().overlong == 1
    with pytest.raises(Fault, match=r"r\.jsonl:4: \d+ tokens, but a row of seq_len 64 holds 66"):
        Loader([Record(rows[0], "r.jsonl:4")], tokenizer, 1, 64, "pack", overlong="error", unit=Pairs()).next()


@pytest.mark.parametrize(
    ("unit", "row", "says"),
    [
        (Pairs(), {"prompt": "a", "completion": "b"}, "shape 'completion' .* where chosen, rejected is needed"),
        (Rankings(), {"text": "a"}, "shape 'text' .* where prompt, completions, scores is needed"),
        (Verdicts(), ROWS[0], "shape 'preference' .* where prompt, completion, label is needed"),
        (Verdicts(), {"prompt": "a", "completion": "b", "label": 1}, "add a field 'mismatched'"),
        (
            Rankings(),
            {"prompt": "a", "completions": ["b"] * 65, "scores": list(range(65))},
            "65 completions; a row of a batch holds 64",
        ),
    ],
)
def test_rows_of_another_shape(tokenizer, unit, row, says):
    with pytest.raises(Fault, match=says):
        Loader([row], tokenizer, 1, 64, "pack", unit=unit).next()


def test_pairs_are_not_joined(tokenizer):
    with pytest.raises(Fault, match="must stay whole"):
        Loader(ROWS, tokenizer, 1, 64, "blocks", unit=Pairs())


def test_real_preferences(shared_data):
    tokenizer = SentencePieceTokenizer.load(shared_data / "tokenizers" / "mistral-v1.model")
    with gzip.open(shared_data / "hh_rlhf" / "harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(200), strict=False)]
    loader = Loader(rows, tokenizer, 4, 512, "pack", epochs=1, unit=Pairs())
    batches = drain(loader)
    counts = loader.counts()
    assert sum(int(batch["weight"].sum()) for batch in batches) == 200 - counts.dropped > 190
    assert counts.fill > 0.75
    prompt, chosen = said(batches[0], 0, 1, tokenizer)
    assert prompt.endswith("Assistant:") and "Human:" not in chosen


def test_a_row_is_read_once(monkeypatch):
    from jaxpost.data import text
    from jaxpost.data.batches import pairs

    read = []
    for module in (pairs, text.shapes):
        given = module.normalise
        monkeypatch.setattr(module, "normalise", lambda *row, given=given: read.append(1) or given(*row))
    Pairs().said({"prompt": "a", "chosen": "b", "rejected": "c"}, None, None)
    assert len(read) == 1


SAID = ["are equal", "is empty", "no answer is better"]
USELESS = [
    {"prompt": "a\n", "chosen": "b", "rejected": "b"},
    {"prompt": "a\n", "chosen": " ", "rejected": "b"},
    {"prompt": "a\n", "chosen": "b", "rejected": "c", "votes": ["chosen", "rejected", None]},
]


def test_rows_that_teach_nothing_are_counted_by_what_is_wrong_with_them(tokenizer):
    voted = {"prompt": "Is it?\n", "chosen": "No", "rejected": "Yes", "votes": [1, 1, 0], "weight": 0.5}
    ranked = {"prompt": "Is it?\n", "completions": ["No", "Yes"], "scores": [2, 2]}
    loader = Loader([*USELESS, voted, ranked], tokenizer, 1, 64, "pack", epochs=1, unit=Pairs())
    (batch,) = drain(loader)
    assert [said(batch, 0, s, tokenizer)[1] for s in (1, 2)] == ["Yes", "No"], "what most say is better is chosen"
    assert batch["weight"][0].tolist() == [0.5] + [0.0] * (MOST // 2 - 1)
    counts = loader.counts()
    assert (counts.equal, counts.empty, counts.tied, counts.dropped) == (1, 1, 2, 4)
    assert counts.uses == (
        "1 with equal answers, 1 with an empty answer, 2 with no best answer left out, as they teach nothing; "
        "66.7 % of 3 votes are for what is taken as best"
    )
    with pytest.raises(Fault, match=r"not one example could be used: .* \(1 with equal answers, 1 with an empty"):
        Loader(USELESS, tokenizer, 1, 64, "pack", epochs=1, unit=Pairs()).next()


@pytest.mark.parametrize(("row", "says"), list(zip(USELESS, SAID, strict=True)))
def test_or_refused_with_their_place(tokenizer, row, says):
    strict = Handling("error", "error", "error")
    for unit in (Pairs(strict), Rankings(strict)):
        with pytest.raises(Fault, match=rf"r\.jsonl:4: .*{says}.*; remove the row"):
            Loader([Record(row, "r.jsonl:4")], tokenizer, 1, 64, "pack", unit=unit).next()


def test_an_answer_that_says_nothing_may_be_learned_from(tokenizer):
    batch = Loader(USELESS[1:2], tokenizer, 1, 64, "pack", epochs=1, unit=Pairs(Handling(empty="keep"))).next()
    assert batch["weight"].sum() == 1 and batch["segments"].max() == 2


def test_a_ranking_gives_a_pair_and_a_pair_a_ranking(tokenizer):
    ranking = {"prompt": "Pet?\n", "completions": ["mat", "cat", "cow", "dog"], "ranks": [3, 1, None, 2], "weight": 2}
    batch = Loader([ranking], tokenizer, 1, 64, "pack", epochs=1, unit=Pairs()).next()
    assert [said(batch, 0, s, tokenizer)[1] for s in (1, 2)] == ["cat", "mat"] and batch["weight"][0, 0] == 2
    batch = Loader([ranking], tokenizer, 1, 64, "pack", epochs=1, unit=Rankings()).next()
    assert batch["groups"][0, :4].tolist() == [1, 1, 1, 0] and batch["scores"][0, :3].tolist() == [-1, -2, -3]
    assert batch["weight"][0, :4].tolist() == [2, 2, 2, 0]
    batch = Loader([ROWS[2] | {"margin": 3}], tokenizer, 1, 64, "pack", epochs=1, unit=Rankings()).next()
    assert said(batch, 0, 1, tokenizer)[1] == ROWS[2]["chosen"] and batch["scores"][0, :2].tolist() == [3, 0]


def test_judged_by_themselves_answers_may_be_alone_or_tied(tokenizer):
    rows = [{"prompt": "Pet?\n", "completions": ["cat"], "scores": [0.5]}]
    rows.append({"prompt": "Tree?\n", "completions": ["oak", "elm"], "scores": [1, 1]})
    batch = Loader(rows, tokenizer, 1, 64, "pack", seed=None, unit=Rankings(compared=False), epochs=1).next()
    assert batch["segments"].max() == 3 and sorted(batch["scores"][0, :3].tolist()) == [0.5, 1, 1]
    with pytest.raises(Fault, match="2 with no best answer"):
        Loader(rows, tokenizer, 1, 64, "pack", unit=Rankings(), epochs=1).next()


def test_ties_may_be_kept_and_agreement_told(tokenizer):
    rows = [ROWS[1] | {"votes": votes} for votes in ([0, 1], [0, 0, 1, None], [None])]
    batch = Loader(rows, tokenizer, 1, 96, "pack", None, 1, unit=Pairs(Handling(ties="keep"))).next()
    assert sorted(batch["agreement"][0, :4].tolist()) == pytest.approx([0, 0.5, 0.5, 2 / 3])


def test_whole_answers_are_read_to_their_end(tokenizer):
    plain, whole = (
        Loader(ROWS[:1], tokenizer, 1, 64, "pack", None, 1, unit=Pairs(whole=w)).next() for w in (False, True)
    )
    for segment in (1, 2):
        one, other = (batch["tokens"][0][batch["segments"][0] == segment].tolist() for batch in (plain, whole))
        assert other == [*one, tokenizer.eos]
        assert not whole["mask"][0][whole["segments"][0] == segment][-1]
    assert whole["mask"].sum() == plain["mask"].sum()
