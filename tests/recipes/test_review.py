# SPDX-License-Identifier: Apache-2.0
"""What a run shows of its held-out rows."""

import json

import pytest

from jaxpost.recipes import base
from jaxpost.recipes.corpus import Files
from jaxpost.recipes.review import Review, Reviewing

TURNS = [("user", "Hi"), ("assistant", "Hello there"), ("user", "A pet?"), ("assistant", "A cat")]


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"messages": [{"role": role, "content": text} for role, text in TURNS]}, "Hi", "Hello there"),
        ({"prompt": "Name a pet.\n", "completion": "A cat"}, "Name a pet.", "A cat"),
        ({"text": "one two three four"}, "one two t", "hree four"),
    ],
)
def test_a_sample_is_a_prompt_and_the_first_answer_to_it(tmp_path, row, prompt, target):
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    corpus, model = Files(str(tmp_path / "rows.jsonl"), hold=1), base.Pretrained()
    review = Reviewing(Review(generations=1), corpus, tmp_path, base.config_of(model), base.tokenizer_of(model))
    (sample,) = review._samples
    assert prompt in sample.prompt and target in sample.target and "pet?" not in sample.prompt + sample.target
