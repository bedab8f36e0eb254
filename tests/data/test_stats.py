# SPDX-License-Identifier: Apache-2.0
"""What is said about rows is what they are."""

import io

import numpy as np
import pytest
from rich.console import Console

from jaxpost.data import stats
from jaxpost.data.batches.loader import Loader, Single
from jaxpost.data.batches.pairs import Pairs, Rankings
from jaxpost.data.blend import Blend
from jaxpost.data.chat.jinja import Jinja
from jaxpost.data.chat.template import Own
from jaxpost.data.stats import as_groups, gather, histogram, kind_of, table, unit_of
from jaxpost.data.tasks import Example
from jaxpost.data.tokenizers import Tokens

ROWS = [{"prompt": f"What is {i} + {i}?", "completion": "one " * (i % 7) + str(2 * i)} for i in range(30)]
PAIR = {"prompt": "Say yes.\n", "chosen": "Yes", "rejected": "No"}


def found(rows, tokenizer, seq_len=48, **options):
    unit = unit_of(rows)
    groups = as_groups(rows, unit, tokenizer, None, "completion")
    return gather(rows, groups, lambda g: Loader(g, tokenizer, 2, seq_len, "pack", epochs=1, unit=unit, **options))


def printed(shown, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return console.file.getvalue()


def test_the_numbers_are_those_of_the_batches(tokenizer):
    seen = found([*ROWS, ROWS[3], ROWS[4]], tokenizer)
    loader = Loader([*ROWS, ROWS[3], ROWS[4]], tokenizer, 2, 48, "pack", epochs=1)
    batches = 0
    while batches < seen.batches:
        loader.next()
        batches += 1
    with pytest.raises(StopIteration):
        loader.next()
    assert seen.counts == loader.counts() and seen.exact == 2 and seen.compared == 30
    assert seen.tokens == loader.counts().tokens + 32, "a row's last token takes no place"
    assert seen.trained == loader.counts().trained
    text = printed(table(seen))
    assert "32 of prompt, completion" in text and f"{100 * seen.counts.fill:.1f} % full" in text
    assert "2 exact" in text and "none" in text


def test_the_sources_of_a_mixture_are_told_apart(tokenizer):
    rows = Blend({"sums": ROWS, "tales": [{"text": f"A tale of {n} cats"} for n in "abcdefghij"]})
    text = printed(table(found(rows, tokenizer)))
    assert "sums: 30 of prompt, completion (75.0 %)" in text and "tales: 10 of text (25.0 %)" in text


def test_what_is_too_long_is_told(tokenizer):
    long = {"prompt": "The cat", "completion": "sat " * 60}
    for overlong, told in (("truncate", "1 cut, 0 left out"), ("drop", "0 cut, 1 left out")):
        assert told in printed(table(found([*ROWS, long], tokenizer, overlong=overlong)))


def test_near_duplicates_are_looked_for_in_a_sample_that_is_named(tokenizer, monkeypatch):
    text = " ".join(f"word{i}" for i in range(60))
    rows = [{"text": text}, {"text": text + "."}, *({"text": f"The river runs {i} miles"} for i in range(10))]
    assert found(rows, tokenizer, 512).near == 1
    monkeypatch.setattr(stats, "COMPARED", 6)
    seen = found(rows, tokenizer, 512)
    assert seen.compared == 6 and "in a sample of 6" in printed(table(seen))


def test_lengths_are_drawn_in_ranges_that_hold_all_rows(tokenizer):
    seen = found(ROWS, tokenizer)
    lines = histogram(seen).plain.splitlines()
    assert sum(int(line.split()[1]) for line in lines) == len(ROWS)
    assert max(line.count("█") for line in lines) == 40 and len(lines) <= stats.BARS + 1


@pytest.mark.parametrize("sizes", [[5], [1, 10_000], [7] * 50, list(range(2, 900)), [30] * 999 + [40_000]])
def test_any_lengths_can_be_drawn(tokenizer, sizes):
    from dataclasses import replace

    seen = replace(found(ROWS[:3], tokenizer), sizes=np.array(sizes))
    lines = histogram(seen).plain.splitlines()
    assert 1 <= len(lines) <= stats.BARS + 1
    assert sum(int(line.split()[1].replace(",", "")) for line in lines) == len(sizes)


@pytest.mark.parametrize(
    ("row", "kind", "unit"),
    [
        (ROWS[0], "completion", Single()),
        (PAIR, "preference", Pairs()),
        ({"prompt": "a", "completions": ["b", "c"], "scores": [1, 0]}, "ranking", Rankings()),
        ({"prompt": "a", "completion": "b", "label": True}, "unpaired", stats.Asked()),
        ({"prompt": "a cat"}, "prompt", stats.Asked()),
        ({"prompt": [{"role": "user", "content": "Hi"}]}, "prompt", stats.Asked()),
        (Example("a", "b"), "task", Single()),
        (Tokens(np.arange(5, dtype=np.int32), np.ones(5, bool)), "tokens", Single()),
    ],
)
def test_every_shape_can_be_counted(tokenizer, row, kind, unit):
    assert kind_of([row]) == kind and unit_of([row]) == unit
    seen = found([row, row], tokenizer, 64)
    assert seen.tokens > 0 and seen.counts.examples == 2
    assert printed(table(seen)) and printed(histogram(seen))


def test_turns_that_a_template_rewrites_are_counted():
    """A template that leaves the thoughts out of former turns: those turns are read, not learned."""
    talk = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    template = Own(Jinja(FORGETFUL, "forgetful.jinja"), ("<e>",))
    assert stats._unlearnt([{"messages": talk}] * 3, None, template) == 3
    assert stats._unlearnt([{"messages": talk[:2]}, {"text": "no dialogue"}], None, template) == 0


FORGETFUL = (
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
