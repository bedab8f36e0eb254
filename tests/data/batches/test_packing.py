# SPDX-License-Identifier: Apache-2.0
import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.batches.packing import MOST, Blocks, Group, Packer, choose, lay, shift
from jaxpost.data.tokenizers import Tokens

ROOM = 12
STREAMS = st.lists(st.none() | st.integers(2, ROOM + 1), max_size=30)  # lengths of examples; None is left out
DEPTHS = st.sampled_from([0, 1, 4])


def examples(lengths):
    """Tokens that say which example they are of and where in it: 1000 * k + position, the odd ones trained."""
    found = []
    for k, length in enumerate(lengths, start=1):
        ids = np.arange(1000 * k, 1000 * k + (length or 0), dtype=np.int32)
        found.append(None if length is None else Tokens(ids, ids % 2 == 1))
    return found


def alone(stream):
    """Each example as a group of its own."""
    return lambda k: None if stream[k] is None else Group((stream[k],))


def rows_of(lane):
    """The examples of each row."""
    return [[shift(tokens) for group in row for tokens in group.members] for row in iter(lane.next, None)]


def test_the_shift_is_by_one_and_the_mask_belongs_to_the_target():
    inputs, targets, mask = shift(Tokens(np.array([1, 5, 6, 2], np.int32), np.array([False, False, True, True])))
    assert inputs.tolist() == [1, 5, 6] and targets.tolist() == [5, 6, 2] and mask.tolist() == [0, 1, 1]
    assert mask.dtype == np.float32


def test_a_row_by_hand():
    a, b = (shift(tokens) for tokens in examples([3, 4]))
    row = lay([a, b], 7, pad=9)
    assert row["tokens"].tolist() == [1000, 1001, 2000, 2001, 2002, 9, 9]
    assert row["targets"].tolist() == [1001, 1002, 2001, 2002, 2003, 9, 9]
    assert row["mask"].tolist() == [1, 0, 1, 0, 1, 0, 0]
    assert row["segments"].tolist() == [1, 1, 2, 2, 2, 0, 0]
    assert row["positions"].tolist() == [0, 1, 0, 1, 2, 0, 0]
    assert {name: value.dtype for name, value in row.items()} == dict.fromkeys(row, np.int32) | {"mask": np.float32}


def test_an_empty_row_is_all_padding():
    row = lay([], 4, pad=3)
    assert not row["segments"].any() and not row["mask"].any() and (row["tokens"] == 3).all()


@given(STREAMS, DEPTHS)
def test_packing_keeps_every_example_whole_and_once(lengths, depth):
    stream = examples(lengths)
    packed = rows_of(Packer(alone(stream), ROOM, depth))
    seen = sorted((example for row in packed for example in row), key=lambda example: int(example.inputs[0]))
    kept = [tokens for tokens in stream if tokens is not None]
    assert len(seen) == len(kept)
    for example, tokens in zip(seen, kept, strict=True):
        assert all(map(np.array_equal, example, shift(tokens)))
    assert all(sum(len(example.inputs) for example in row) <= ROOM for row in packed)
    if depth == 0:
        assert all(len(row) == 1 for row in packed)
        assert [int(row[0].inputs[0]) for row in packed] == [int(tokens.ids[0]) for tokens in kept]


@given(STREAMS, DEPTHS)
def test_segments_positions_targets_and_mask_agree(lengths, depth):
    for packed in rows_of(Packer(alone(examples(lengths)), ROOM, depth)):
        row = lay(packed, ROOM, pad=0)
        for segment in range(1, len(packed) + 1):
            at = row["segments"] == segment
            assert row["positions"][at].tolist() == list(range(at.sum()))
            assert len(set(row["tokens"][at] // 1000)) == 1
            np.testing.assert_array_equal(row["targets"][at], row["tokens"][at] + 1)
            np.testing.assert_array_equal(row["mask"][at], row["targets"][at] % 2)
        padding = row["segments"] == 0
        assert not (row["tokens"][padding].any() or row["mask"][padding].any() or row["positions"][padding].any())
        assert (np.diff(row["segments"][~padding]) >= 0).all() and not padding[: (~padding).sum()].any()


@given(st.lists(st.integers(1, ROOM), min_size=1, max_size=20))
def test_the_oldest_goes_first_and_nothing_that_fits_is_left(sizes):
    chosen = choose(sizes, ROOM)
    left = ROOM - sum(sizes[i] for i in chosen)
    assert chosen[0] == 0 and len(set(chosen)) == len(chosen) and left >= 0
    assert all(sizes[i] > left for i in range(len(sizes)) if i not in chosen)


def test_of_what_fits_the_longest_is_chosen_and_of_equals_the_older():
    assert choose([4, 3, 6, 2, 6, 1, 2], 12) == [0, 2, 3]
    assert choose([12, 1], 12) == [0]


def test_packing_is_worth_it():
    lengths = np.random.default_rng(0).integers(5, 200, 2000).tolist()
    fill = [sum(lengths) / 512 / len(rows_of(Packer(_sized(lengths), 512, depth))) for depth in (0, 1, 4)]
    assert fill[0] < 0.25 and fill[1] > 0.9 and fill[2] > 0.98


def _sized(lengths):
    return alone([Tokens(np.zeros(n + 1, np.int32), np.ones(n + 1, bool)) for n in lengths])


@given(st.lists(st.none() | st.integers(2, 40), max_size=12), st.integers(1, 15))
def test_blocks_make_every_token_but_the_first_a_target_once(lengths, room):
    stream = examples(lengths)
    rows = rows_of(Blocks(alone(stream), room))
    joined = np.concatenate([np.zeros(0, np.int32), *(tokens.ids for tokens in stream if tokens is not None)])
    assert all(len(row) == 1 for row in rows)
    targets = np.concatenate([np.zeros(0, np.int32), *(row[0].targets for row in rows)])
    inputs = np.concatenate([np.zeros(0, np.int32), *(row[0].inputs for row in rows)])
    np.testing.assert_array_equal(targets, joined[1:])
    np.testing.assert_array_equal(inputs, joined[:-1])
    assert all(len(row[0].inputs) == room for row in rows[:-1])
    for (row,) in rows:
        np.testing.assert_array_equal(row.mask, row.targets % 2)


@pytest.mark.parametrize("kind", ["none", "pack", "blocks"])
@given(lengths=STREAMS, pauses=st.sets(st.integers(0, 20)))
def test_a_lane_put_back_goes_on_as_if_nothing_had_happened(kind, lengths, pauses):
    def lane():
        fetch = alone(examples(lengths))
        return Blocks(fetch, ROOM) if kind == "blocks" else Packer(fetch, ROOM, 0 if kind == "none" else 2)

    wanted = rows_of(lane())
    current, got = lane(), []
    while True:
        if len(got) in pauses:
            saved = json.loads(json.dumps(current.save()))
            current = lane()
            current.restore(saved)
        if (row := current.next()) is None:
            break
        got.append([shift(tokens) for group in row for tokens in group.members])
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert all(np.array_equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))


GROUPS = st.lists(st.none() | st.lists(st.integers(2, 5), min_size=1, max_size=4), max_size=20)


@given(GROUPS, DEPTHS)
def test_groups_stay_whole_and_come_once(sizes, depth):
    flat = iter(examples([n for size in sizes if size for n in size]))
    groups = [None if size is None else Group(tuple(next(flat) for _ in size)) for size in sizes]
    lane = Packer(groups.__getitem__, 16, depth)
    rows = list(iter(lane.next, None))
    assert all(sum(group.size for group in row) <= 16 for row in rows)
    seen = sorted((group for row in rows for group in row), key=lambda group: int(group.members[0].ids[0]))
    assert all(one is other for one, other in zip(seen, [g for g in groups if g is not None], strict=True))


def test_a_row_holds_no_more_examples_than_attention_can_tell_apart():
    triple = (Tokens(np.zeros(2, np.int32), np.ones(2, bool)),) * 3
    lane = Packer(([Group(triple)] * 50).__getitem__, 10_000, 4)
    rows = list(iter(lane.next, None))
    assert [sum(len(group.members) for group in row) for row in rows] == [MOST // 3 * 3, MOST // 3 * 3, 24]


def test_a_document_as_long_as_a_book_is_not_copied_for_every_block():
    book = Tokens(np.arange(2_000_000, dtype=np.int32), np.ones(2_000_000, bool))
    begun = time.process_time()
    assert len(rows_of(Blocks(alone([book]), 512))) == 3907
    assert time.process_time() - begun < 2.0  # 0.1 s, or 15
