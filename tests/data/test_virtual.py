# SPDX-License-Identifier: Apache-2.0
"""Places for a learned prompt: in every example, in order, never a target, never cut; everything else as without."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data.batches.loader import Loader
from jaxpost.data.batches.packing import Group
from jaxpost.data.batches.pairs import Pairs, Rankings, comparable
from jaxpost.data.parts import Part
from jaxpost.data.prepare import cache
from jaxpost.data.show import show
from jaxpost.data.show_pairs import show_compared
from jaxpost.data.stats import gather
from jaxpost.data.text import chat_prompt, parts_of
from jaxpost.data.tokenizers import (
    Tokens,
    Virtual,
    check_ids,
    newest,
    prompt_ids,
    reserve,
    tokenise,
    tokenise_batch,
    with_virtual,
)
from jaxpost.faults import Fault

ROWS = [{"prompt": f"What is {i} + {i}?", "completion": "one " * (i % 7) + str(2 * i)} for i in range(17)]
PAIRS = [{"prompt": f"What is {i}?\n", "chosen": "two " * (1 + i % 5), "rejected": "no"} for i in range(9)]
RANKINGS = [{"prompt": "Name a pet.\n", "completions": ["mat", "dog"], "scores": [0, i]} for i in range(1, 4)]
TALK = {
    "messages": [
        {"role": role, "content": text}
        for role, text in (("user", "one?"), ("assistant", "two"), ("user", "three?"), ("assistant", "four"))
    ]
}
PLACES = st.builds(Virtual, st.integers(1, 9), st.sampled_from(["before", "between"]))


def drain(loader):
    batches = []
    with suppress(StopIteration):
        while True:
            batches.append(loader.next())
    return batches


def segments(batches):
    """What each example of the batches is: its tokens, targets and mask."""
    for batch in batches:
        for i, row in enumerate(batch["segments"]):
            for segment in range(1, row.max(initial=0) + 1):
                at = row == segment
                yield tuple(batch[name][i][at] for name in ("tokens", "targets", "mask", "positions"))


@given(virtual=PLACES, packing=st.sampled_from(["none", "pack"]), train_on=st.sampled_from(["completion", "all"]))
@settings(max_examples=12)
def test_every_example_of_a_batch_has_all_places_and_is_else_the_same(tokenizer, virtual, packing, train_on):
    def loaded(tokenizer):
        return Loader(ROWS, tokenizer, 2, 96, packing, seed=1, epochs=1, train_on=train_on)

    plain = {tuple(tokens): mask for tokens, _, mask, _ in segments(drain(loaded(tokenizer)))}
    seen = 0
    for tokens, targets, mask, positions in segments(drain(loaded(with_virtual(tokenizer, virtual)))):
        places, text = np.flatnonzero(tokens < 0), tokens[tokens >= 0]
        assert tokens[places].tolist() == virtual.ids.tolist()  # all, in order, side by side
        assert places.tolist() == list(range(places[0], places[0] + virtual.count))
        assert positions.tolist() == list(range(len(tokens)))
        assert targets.min() >= 0 and not mask[:-1][tokens[1:] < 0].any()
        assert mask.sum() == plain[tuple(text)].sum()
        if virtual.place == "before":
            assert not places[0] and mask[virtual.count :].tolist() == plain[tuple(text)].tolist()
        elif train_on == "completion":
            assert np.argmax(mask) == places[-1]  # the last place says the first token of the answer
        seen += 1
    assert seen == len(plain) == len(ROWS)


@pytest.mark.parametrize("virtual", [Virtual(1), Virtual(4), Virtual(3, "between")])
def test_a_prompt_is_the_same_places_and_tokens_with_its_answer_as_without(tokenizer, folding, qwen, virtual):
    for kind in map(lambda made: with_virtual(made, virtual), (tokenizer, folding, qwen)):
        parts = (Part("Is it?\n", False), Part("Yes it is", True, opens=True))
        whole, prompt = tokenise(kind, parts), prompt_ids(kind, "Is it?\n")
        assert whole.ids[: len(prompt)].tolist() == prompt
        assert tokenise_batch(kind, [parts], "completion", ["here"])[0].ids.tolist() == whole.ids.tolist()
        talk = parts_of(TALK, template=kind.template)
        whole = tokenise(kind, talk)
        for turns in (1, 3):
            prompt = prompt_ids(kind, kind.template.prompt(TALK["messages"][:turns]))
            assert whole.ids[: len(prompt)].tolist() == prompt, turns
        assert (whole.ids < 0).sum() == virtual.count  # once, in a conversation of two answers


def test_places_between_stand_before_the_assistant_speaks_first(tokenizer):
    kind = with_virtual(tokenizer, Virtual(3, "between"))
    ids = prompt_ids(kind, chat_prompt(TALK["messages"][:3]))
    at = ids.index(-1)
    assert ids[at : at + 3] == [-1, -2, -3]
    assert tokenizer.decode(ids[:at]).endswith("Assistant:\n") and tokenizer.decode(ids[at + 3 :]).startswith("two")


@given(virtual=PLACES, room=st.integers(12, 40), unit=st.sampled_from([Pairs(), Rankings()]))
@settings(max_examples=12)
def test_answers_that_are_compared_keep_the_places_however_they_are_cut(tokenizer, virtual, room, unit):
    kind = with_virtual(tokenizer, virtual)
    rows = PAIRS if isinstance(unit, Pairs) else RANKINGS
    loader = Loader(rows, kind, 1, 2 * (virtual.count + room), seed=None, epochs=1, unit=unit)
    for tokens, targets, mask, _ in segments(drain(loader)):
        assert tokens[tokens < 0].tolist() == virtual.ids.tolist()
        assert targets.min() >= 0 and mask.sum() > 0


def test_too_little_room_for_two_prompts_leaves_a_pair_out():
    ids = np.array([-1, -2, -3, 1, 5, 6, 9], np.int32)
    trained = np.array([False] * 6 + [True])
    group = Group((Tokens(ids, trained), Tokens(np.append(ids[:-1], 8).astype(np.int32), trained)))
    assert comparable(group, 4, 1) is None
    cut = comparable(group, 8, 1)
    assert cut is not None and [member.ids.tolist() for member in cut.members] == [
        [-1, -2, -3, 1, 9],
        [-1, -2, -3, 1, 8],
    ]


@given(
    ids=st.lists(st.integers(1, 9), max_size=12), places=st.integers(0, 4), at=st.integers(0, 12), room=st.integers()
)
def test_the_newest_tokens_stay_and_so_do_all_places(ids, places, at, room):
    at, room = min(at, len(ids)), places + abs(room) % 12
    whole = np.array([*ids[:at], *(-1 - np.arange(places)), *ids[at:]], np.int64)
    for bos in (None, 1):
        kept = whole[newest(whole, room, bos)]
        assert len(kept) == min(room, len(whole))
        assert kept[kept < 0].tolist() == (-1 - np.arange(places)).tolist()
        text = kept[kept >= 0].tolist()
        if bos is None or ids[:1] != [1] or not text:
            assert text == ids[len(ids) - len(text) :]
        else:
            assert text == [1, *ids[len(ids) - len(text) + 1 :]]


def test_a_cut_never_reaches_the_places(tokenizer):
    row = {"prompt": "What is the colour of the sky?", "completion": "The sky is blue."}
    long = len(tokenise(tokenizer, parts_of(row)).ids)
    kind = with_virtual(tokenizer, Virtual(4))
    (batch,) = drain(Loader([row], kind, 1, long, epochs=1))
    assert batch["tokens"][0, :5].tolist() == [-1, -2, -3, -4, 1]
    between = with_virtual(tokenizer, Virtual(4, "between"))
    prompt = len(prompt_ids(between, "What is the colour of the sky?\n"))
    with pytest.raises(Fault, match="not one example could be used"):
        Loader([row], between, 1, prompt - 3, epochs=1, train_on="all").next()  # half of the places would be left


def test_rows_of_tokens_get_the_places_and_may_not_hold_any(tokenizer):
    kind, row = with_virtual(tokenizer, Virtual(2)), Tokens(np.array([5, 6, 7], np.int32), np.ones(3, bool))
    (batch,) = drain(Loader([row], kind, 1, 6, epochs=1))
    assert batch["tokens"][0, :4].tolist() == [-1, -2, 5, 6] and batch["mask"][0].tolist() == [0, 0, 1, 1, 0, 0]
    with pytest.raises(Fault, match="below zero"):
        check_ids(kind, Tokens(np.array([5, -1], np.int32), np.ones(2, bool)), "row 3")
    between = with_virtual(tokenizer, Virtual(2, "between"))
    answer = Tokens(np.array([5, 6, 7], np.int32), np.array([False, False, True]))
    assert reserve(between, answer, "a row").ids.tolist() == [5, 6, -1, -2, 7]
    with pytest.raises(Fault, match="delta.place 'before'"):
        reserve(between, row, "row 3")
    with pytest.raises(Fault, match="a text without a prompt.*delta.place 'before'"):
        tokenise(between, parts_of({"text": "The sky is blue."}))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"packing": "blocks"}, "'blocks' joins documents.*use 'pack'"),
        ({"seq_len": 8}, "longer than the context.*8 pl"),
    ],
)
def test_what_cannot_hold_a_prompt_says_so(tokenizer, options, said):
    with pytest.raises(Fault, match=said):
        Loader(ROWS, with_virtual(tokenizer, Virtual(8)), **{"batch": 1, "seq_len": 64, **options})
    with pytest.raises(Fault, match="a prompt longer than the context: 3 places"):
        newest([-1, -2, -3, 7], 2)


def test_tokens_that_are_kept_know_their_places(tokenizer, tmp_path):
    def read(virtual):
        from jaxpost.data.batches.loader import Single

        kind = with_virtual(tokenizer, virtual)
        kept = cache.tokenised(ROWS, kind, Single(), root=tmp_path)
        assert all(
            np.array_equal(kept[i].members[0].ids, tokenise(kind, parts_of(row)).ids) for i, row in enumerate(ROWS)
        )
        return drain(Loader(kept, kind, 2, 64, epochs=1))

    plain, before, between = (read(virtual) for virtual in (Virtual(), Virtual(3), Virtual(3, "between")))
    assert not (plain[0]["tokens"] < 0).any()
    assert (before[0]["tokens"] < 0).sum() == (between[0]["tokens"] < 0).sum() == 6
    assert not np.array_equal(before[0]["tokens"], between[0]["tokens"])


def test_shown_and_counted_the_places_are_told_apart(tokenizer):
    row, virtual = ROWS[2], Virtual(5)
    kind = with_virtual(tokenizer, virtual)
    (plain,), (shown,) = (list(show([row], made)) for made in (tokenizer, kind))
    assert shown.plain.splitlines()[1:][0] == "⟨prompt 5⟩" + plain.plain.splitlines()[1:][0]
    assert "tokens and 5 places of the learned prompt, " in shown.plain
    assert shown.plain.split("·")[1].split()[0] == plain.plain.split("·")[1].split()[0]
    (infix,) = show([row], with_virtual(tokenizer, Virtual(5, "between")))
    assert "?\n⟨prompt 5⟩⟦one one 4" in infix.plain
    pair = show_compared(PAIRS[2], kind)
    assert "and 5 places of the learned prompt" in pair.plain and "\n⟨prompt 5⟩What is 2?" in pair.plain

    groups = [Group((tokenise(kind, parts_of(row)),)) for row in ROWS]
    found = gather(ROWS, groups, lambda groups: Loader(groups, kind, 2, 64, epochs=1))
    assert found.reserved == 5 * len(ROWS)
