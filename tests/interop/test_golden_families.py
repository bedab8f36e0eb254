# SPDX-License-Identifier: Apache-2.0
"""Every family against numbers that transformers made (tests/golden/README.md)."""

import numpy as np
import pytest
from safetensors import safe_open

from jaxpost.interop import load, read_config, save
from jaxpost.sample import Sampling, generate
from tests.interop.golden import CASES, GOLDEN, LAYOUTS, NEW, Ours, numbers, tensors

TOLERANCE = 1e-4  # transformers' own padding moves its logits by up to 3e-6


def test_every_golden_case_is_tested_and_says_how_it_was_made():
    families = {path.parent.name for path in GOLDEN.glob("*/config.json")}
    assert sorted(families) == sorted(CASES)
    assert len(set(CASES)) == len(CASES) == 23
    for name in CASES:
        with safe_open(GOLDEN / name / "numbers.safetensors", framework="numpy") as file:
            assert file.metadata()["made_by"].startswith(f"python tools/golden/families.py {name} (seed")


@pytest.fixture(scope="module", params=CASES)
def ours(request):
    return Ours(request.param)


def test_logits_agree_however_examples_are_laid_out(ours):
    assert ours.logits.dtype == np.float32 and np.std(ours.numbers["alone/logits"]) > 0.5
    errors = {layout: ours.logits_error(layout) for layout in LAYOUTS} | {"alone": ours.alone_error()}
    assert max(errors.values()) <= TOLERANCE, errors


def test_losses_and_gradient_norms_agree(ours, tmp_path):
    assert ours.loss_error() <= 1e-5
    errors = ours.gradient_errors(tmp_path / "gradients")
    assert max(errors.values()) <= 1e-4, errors


def test_what_is_read_from_the_cache_agrees_and_greedy_continuations_are_equal(ours):
    tokens, error = ours.continued()
    assert error <= TOLERANCE
    np.testing.assert_array_equal(tokens, ours.numbers["greedy/tokens"])


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_equals_what_transformers_saved(name, tmp_path):
    """Names, shapes, types and values, bit by bit, and a config that says the same."""
    save(tmp_path / "again", *load(GOLDEN / name))
    theirs, ours = tensors(GOLDEN / name), tensors(tmp_path / "again")
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert ours[tensor].dtype == value.dtype
        np.testing.assert_array_equal(ours[tensor], value, err_msg=tensor)
    assert read_config(tmp_path / "again") == read_config(GOLDEN / name)


def test_generate_continues_the_prompts_of_one_batch_as_transformers_does_each_alone():
    """Through the public door; the others go through prefill and decode alone."""
    config, params = load(GOLDEN / "mistral-window", dtype="float32")
    theirs = numbers("mistral-window")
    prompts = [row[:length].tolist() for row, length in zip(theirs["tokens"], theirs["lengths"], strict=True)]
    completions = generate(config, params, prompts, Sampling(max_new=NEW))
    assert [completion.tokens for completion in completions] == theirs["greedy/tokens"].tolist()
