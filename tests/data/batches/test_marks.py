# SPDX-License-Identifier: Apache-2.0
"""Labels stand at the tokens that they belong to, wherever those are in a batch."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data.batches.loader import Loader
from jaxpost.data.batches.marks import Marked, Marks, marked
from jaxpost.data.rows.labels import Classes, Labelled
from jaxpost.data.tokenizers import Virtual, with_virtual
from jaxpost.faults import Fault
from tests.data.batches.test_pairs import drain

CLASSES = Classes(5)
WORDS = st.lists(st.sampled_from(["cat", "apples", "7", "the", "Möwe", "valley", "a", "dog."]), min_size=1, max_size=9)
STORY = "The cat sat on the mat and looked at the dog."
ROWS = {
    "sequence": [{"text": STORY[: 4 + 5 * i], "label": i} for i in range(5)],
    "token": [{"tokens": STORY.split()[: i + 2], "labels": [*range(i), None, 4]} for i in range(5)],
    "span": [{"question": "Who?" * i, "context": STORY, "answer": w} for i, w in enumerate(["cat", "The cat", "dog."])],
}


def loader(kind, tokenizer, packing="pack", seq_len=48, rows=None, **options):
    marks = Marked(rows or ROWS[kind], tokenizer, kind, CLASSES)
    return Loader(marks, tokenizer, 2, seq_len, packing, seed=1, epochs=1, unit=Marks(kind, seq_len), **options)


def examples(batches):
    """Every example as its tokens, targets and mask, without what stands around it."""
    found = []
    for batch in batches:
        for i, segments in enumerate(batch["segments"]):
            for segment in range(1, segments.max(initial=0) + 1):
                at = segments == segment
                found.append(tuple(tuple(batch[name][i][at].tolist()) for name in ("tokens", "targets", "mask")))
            assert not batch["mask"][i][segments == 0].any()
    return sorted(found)


@pytest.mark.parametrize("kind", ROWS)
def test_packed_is_separate(tokenizer, kind):
    packed = drain(loader(kind, tokenizer))
    assert examples(packed) == examples(drain(loader(kind, tokenizer, "none")))
    assert max(batch["segments"].max() for batch in packed) > 1 and len(examples(packed)) == len(ROWS[kind])


def test_a_text_has_its_class_at_its_last_token(tokenizer):
    for tokens, targets, mask in examples(drain(loader("sequence", tokenizer))):
        said = tokenizer.decode(np.array(tokens))
        assert np.flatnonzero(mask).tolist() == [len(tokens) - 1] and mask[-1] == 1
        assert {"text": said, "label": targets[-1]} in ROWS["sequence"]


@pytest.mark.parametrize("virtual", [0, 3])
@pytest.mark.parametrize("kind", ["tokenizer", "qwen"])
@given(words=WORDS, seed=st.integers(0, 99))
@settings(max_examples=15)
def test_a_word_has_its_class_at_its_last_token(request, kind, virtual, words, seed):
    """With and without a bos and reserved places: what stands up to a mark is the text up to the end of the word."""
    tokenizer = with_virtual(request.getfixturevalue(kind), Virtual(virtual))
    chosen = np.random.default_rng(seed).random(len(words)) < 0.7
    chosen[-1] = True
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    ranges = [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]
    said = Labelled("", " ".join(words), tuple(r for r, c in zip(ranges, chosen, strict=True) if c), (2,) * sum(chosen))
    (tokens,), values, *_ = marked(tokenizer, said, "token", "here")
    assert values == (2.0,) * sum(chosen)
    for mark, (_, end) in zip(np.flatnonzero(tokens.trained), said.ranges, strict=True):
        assert tokenizer.decode(tokens.ids[virtual : mark + 1]) == said.text[:end]


@pytest.mark.parametrize("kind", ["tokenizer", "qwen"])
@pytest.mark.parametrize("answer", ["The", "cat", "sat on the mat", "dog.", STORY])
def test_a_span_is_marked_at_both_ends(request, kind, answer):
    tokenizer = request.getfixturevalue(kind)
    start = STORY.index(answer)
    said = Labelled("Who?\n", STORY, ((start, start + len(answer)),), (0,))
    (tokens,), values, *_ = marked(tokenizer, said, "span", "here")
    ends = np.flatnonzero(tokens.trained)
    assert tokenizer.decode(tokens.ids[ends[0] : ends[-1] + 1]).strip() == answer
    assert values == ((1.0, 2.0) if len(ends) == 2 else (3.0,))
    for _, targets, mask in examples(drain(loader("span", tokenizer))):
        assert sum(mask) == 1 and {target for target, m in zip(targets, mask, strict=True) if m} in ({1, 2}, {3})


def test_one_that_is_too_long_keeps_its_beginning(tokenizer):
    """A text's class moves to the last token that is left; a word that is cut off loses its label; a span that is cut
    is left out."""
    for tokens, targets, mask in examples(drain(loader("sequence", tokenizer, seq_len=6))):
        assert len(tokens) <= 6 and np.flatnonzero(mask).tolist() == [len(tokens) - 1]
        assert STORY.startswith(tokenizer.decode(np.array(tokens))) and targets[-1] in range(5)
    whole = examples(drain(loader("token", tokenizer)))
    cut = examples(drain(loader("token", tokenizer, seq_len=8)))
    assert cut == sorted(tuple(field[:8] for field in example) for example in whole if any(example[2][:8]))
    short = loader("span", tokenizer, seq_len=12, rows=ROWS["span"][:1] + [{"context": STORY, "answer": "dog."}])
    assert len(examples(drain(short))) == 1 and short.counts().untrained == 1


def test_reserved_places_are_never_cut_or_marked(tokenizer):
    learned = with_virtual(tokenizer, Virtual(4))
    for tokens, _, mask in examples(drain(loader("sequence", learned, seq_len=10))):
        assert tokens[:4] == (-1, -2, -3, -4) and min(tokens[4:]) >= 0 and not any(mask[:4])
    group = marked(learned, Labelled("", STORY, ((0, 5),), (0,)), "sequence", "here")
    assert Marks("sequence", 4).fit(group, 4, None) is None, "there is no room for the text"


@pytest.mark.parametrize("kind", ROWS)
def test_it_goes_on_where_it_was(tokenizer, kind):
    wanted = drain(loader(kind, tokenizer, seq_len=32))
    first, second = loader(kind, tokenizer, seq_len=32), loader(kind, tokenizer, seq_len=32)
    head = [first.next()]
    second.restore(json.loads(json.dumps(first.save())))
    for one, other in zip(head + drain(second), wanted, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in other)


def test_bad_rows_are_named(tokenizer):
    with pytest.raises(Fault, match="row 7: what has a label has no token of its own"):
        marked(tokenizer, Labelled("", "a  b", ((2, 2),), (0,)), "token", "row 7")
    with pytest.raises(Fault, match="what has a label has no token"):
        marked(tokenizer, Labelled("", "a b", (), ()), "token", "here")
    with pytest.raises(Fault, match="two words with labels end in one token"):
        marked(tokenizer, Labelled("", "the", ((0, 1), (1, 2)), (0, 0)), "token", "here")
