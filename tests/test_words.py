# SPDX-License-Identifier: Apache-2.0
"""What a learned prompt says, shown by `jaxpost words`."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from jaxpost import delta
from jaxpost.cli.words import words
from jaxpost.faults import Fault
from jaxpost.recipes import trained


@pytest.fixture
def run(monkeypatch):
    table = jnp.eye(4)
    made = {"prompt": delta.Insert(jnp.array([[0.0, 3.0, 1.0, 0.0], [5.0, 0.0, 0.0, -5.0]]))}
    tokenizer = SimpleNamespace(piece=lambda token: ["[cat]", "dog", "\nmat", "hat"][token])
    found = {"delta": made, "base": {"embed": table}, "tokenizer": tokenizer}
    monkeypatch.setattr(trained, "read", lambda run, best: SimpleNamespace(**found))
    return found


def test_words_stand_beside_each_place_nearest_first(run, capsys):
    words("runs/x", count=2)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["place", "nearest", "words"]
    assert first.split() == ["1", "'dog'", "0.95", "'\\nmat'", "0.32"]
    assert second.split() == ["2", "'[cat]'", "0.71", "'dog'", "0.00"]


def test_a_run_without_a_prompt_is_told(run):
    run["delta"] = {"layers/attn/q": delta.Insert(jnp.ones(2))}
    with pytest.raises(Fault, match="runs/x: that run has learned no prompt .it tuned layers/attn/q"):
        words("runs/x")
    with pytest.raises(Fault, match="--count is 0"):
        words("runs/x", 0)
