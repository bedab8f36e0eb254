# SPDX-License-Identifier: Apache-2.0
"""Answers judged by themselves, each beside an answer to something else that no batch, seed or device has a say in."""

import pytest

from jaxpost.data.batches.loader import Loader
from jaxpost.data.batches.packing import MOST
from jaxpost.data.batches.pairs import Handling
from jaxpost.data.batches.unpaired import Verdicts
from jaxpost.data.rows.judged import Judged, Mismatched
from jaxpost.data.rows.views import Some
from jaxpost.faults import Fault
from tests.data.batches.test_pairs import USELESS, drain, said

PAIRS = [
    {"prompt": f"What is {i}?\n", "chosen": f"good {i}", "rejected": f"bad {i}", "weight": 1 + i} for i in range(5)
]


def told(batch, tokenizer):
    """Prompt, answer, mismatched answer, label and weight of each example."""
    for i in range(len(batch["tokens"])):
        for k in range(int((batch["weight"][i] > 0).sum())):
            (prompt, answer), (same, other) = (said(batch, i, 2 * k + s, tokenizer) for s in (1, 2))
            assert prompt == same
            yield prompt, answer, other, float(batch["label"][i, k]), float(batch["weight"][i, k])


def test_halves_of_preferences_and_their_mismatch(tokenizer):
    rows = Mismatched(Judged(PAIRS))
    assert len(rows) == 10 and rows[-1]["completion"] == "bad 4" and not rows[-1]["label"]
    found = {}
    for batch_size, seed in ((1, 0), (2, 7)):
        loader = Loader(rows, tokenizer, batch_size, 80, "pack", seed=seed, epochs=1, unit=Verdicts())
        found[seed] = sorted(one for batch in drain(loader) for one in told(batch, tokenizer))
    assert found[0] == found[7], "neither order nor batches choose the other answer"
    for prompt, answer, other, label, weight in found[0]:
        own = prompt.strip().removeprefix("What is ").removesuffix("?")
        assert answer == f"{'good' if label else 'bad'} {own}" and weight == 1 + int(own)
        assert not other.endswith(own)


def test_without_a_mismatch_every_segment_is_an_example(tokenizer):
    rows = Judged([{"prompt": "a\n", "completion": "b", "label": i % 2 == 0} for i in range(4)])
    batch = Loader(rows, tokenizer, 1, 64, "pack", seed=None, unit=Verdicts(mismatched=False)).next()
    assert batch["label"].shape == (1, MOST) and batch["label"][0, :5].tolist() == [1, 0, 1, 0, 1]


def test_what_is_there_already_is_used_and_words_meet_messages():
    own = {"prompt": "a", "completion": "b", "label": True, "mismatched": "mine"}
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "label": False}
    assert Mismatched(Judged([own, own]))[0]["mismatched"] == "mine"
    plain = {name: own[name] for name in ("prompt", "completion", "label")}
    mixed = Mismatched([Judged([plain])[0], Judged([talk])[0]])
    assert mixed[0]["mismatched"][0]["content"] == "ho" and mixed[0]["prompt"][0]["content"] == "a"
    assert mixed[1]["mismatched"][0]["content"] == "b"


def test_halves_that_teach_nothing_are_left_out_together(tokenizer):
    rows = Mismatched(Judged([*USELESS, PAIRS[0]]))
    loader = Loader(rows, tokenizer, 1, 96, "pack", epochs=1, unit=Verdicts())
    (batch,) = drain(loader)
    counts = loader.counts()
    assert int(batch["weight"].sum()) == 3 and (counts.equal, counts.empty, counts.tied) == (2, 1, 2)
    with pytest.raises(Fault, match="no answer is better than another"):
        Loader(Judged(USELESS[2:]), tokenizer, 1, 64, "pack", unit=Verdicts(Handling(ties="error"), False)).next()


def test_rows_of_no_use():
    with pytest.raises(Fault, match="one row, and the KL divergence is estimated from another"):
        Mismatched(Some(Judged(PAIRS), [0]))[0]
    with pytest.raises(
        Fault, match=r"shape 'text' .*, where prompt, completion, label, or chosen, rejected, is needed"
    ):
        Judged([{"text": "a"}])[0]
