# SPDX-License-Identifier: Apache-2.0
"""Near duplicates: nothing is named without a reason, and what should be named mostly is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost.data.prepare import duplicates
from jaxpost.data.prepare.duplicates import PERMUTATIONS, bands, jaccard, near, shingles, signature, windows

WORDS = "the cat sat on a mat and looked at two dogs who did not mind being seen from so far away".split()
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(" ".join), max_size=14)
LONG = [
    " ".join(np.random.default_rng(i).permutation(WORDS * 6).tolist()) + f" and that was number {i}" for i in range(20)
]


def stretches(text, width=9):
    text = " ".join(text.lower().split())
    return {text[i : i + width] for i in range(max(1, len(text) - width + 1))}


@given(TEXTS)
def test_sets_are_those_of_the_texts(texts):
    for one in texts:
        for other in texts:
            a, b = stretches(one), stretches(other)
            assert jaccard(shingles(one), shingles(other)) == pytest.approx(len(a & b) / len(a | b))


def test_every_stretch_has_its_hash():
    assert len(windows("abcdef", 3)) == 4 and len(windows("a", 3)) == 1 == len(windows("", 3))
    assert windows("abcdef", 3)[1] == windows("xbcd", 3)[1] != windows("abcdef", 3)[0]
    assert len(np.unique(windows("日本語のテキストも同じように", 3))) == 12


def test_signatures_agree_as_often_as_sets_are_alike():
    errors = []
    for n in range(0, 900, 30):
        one, other = np.arange(1000, dtype=np.uint64), np.arange(n, 1000 + n, dtype=np.uint64)
        # Hashes as texts have them: spread over all 64 bits.
        one, other = (windows("".join(map(chr, range(200, 1200))), 1)[part % 1000] for part in (one, other))
        one, other = np.unique(one[: 1000 - n]), np.unique(other[: 1000 - n // 2])
        agree = (signature(one) == signature(other)).mean()
        errors.append(agree - jaccard(one, other))
    assert np.abs(errors).max() < 0.2 and abs(np.mean(errors)) < 0.04  # a place is a coin: 0.044 at worst


@given(TEXTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
@settings(max_examples=60)
def test_nothing_is_named_that_is_less_alike(texts, threshold):
    found = near(texts, texts.__getitem__, threshold)
    kept = [i for i in range(len(texts)) if i not in found]
    for i in found:
        assert any(jaccard(shingles(texts[i]), shingles(texts[k])) >= threshold for k in kept if k < i)
    folded = {" ".join(text.lower().split()) for text in texts}
    assert len(kept) <= len(folded), "the same but for its spaces is always found"


def test_copies_with_a_few_changes_are_found():
    changed = [text.replace(" and ", " but ", 1) for text in LONG]
    texts = [*LONG, *changed]
    least = min(jaccard(shingles(a), shingles(b)) for a, b in zip(LONG, changed, strict=True))
    assert 0.8 < least < 1
    assert near(texts, texts.__getitem__, 0.8) == list(range(20, 40))
    assert near(texts, texts.__getitem__, 1.0) == []
    assert near([], LONG.__getitem__, 0.8) == []


def test_only_what_is_compared_is_read_again():
    read = []
    texts = [*LONG, LONG[4].upper()]
    assert near(iter(texts), lambda i: read.append(i) or texts[i], 0.9) == [20]
    assert set(read) == {4, 20}


def test_rows_of_one_template_are_not_compared_all_with_all(monkeypatch):
    told = "You are a careful assistant. Read the passage, then answer the question with one short sentence. "
    drawn = np.random.default_rng(0).integers(10**5, 10**6, (400, 3))
    texts = [told + " ".join(map(str, numbers)) for numbers in drawn]
    texts += [text + "7" for text in texts[:20]]
    sets = [shingles(text) for text in texts]
    wanted = {i for i in range(len(texts)) if any(jaccard(sets[i], sets[k]) >= 0.8 for k in range(i))}
    compared = []
    monkeypatch.setattr(duplicates, "jaccard", lambda *pair: compared.append(1) or jaccard(*pair))
    assert wanted >= set(range(400, 420))
    assert set(near(texts, texts.__getitem__, 0.8)) == wanted
    assert len(wanted) <= len(compared) < 2 * len(texts), "of 88,000 pairs"


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_what_is_as_alike_as_asked(threshold):
    count, rows = bands(threshold)
    assert count * rows <= PERMUTATIONS
    above, below = min(1.0, threshold + 0.05), threshold / 2
    assert (1 - above**rows) ** count < 0.1, "missed"
    assert 1 - (1 - below**rows) ** count < 0.15, "compared in vain"
