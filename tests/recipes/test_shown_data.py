# SPDX-License-Identifier: Apache-2.0
"""The configs that are shown on real data make batches of it: as text they say what the files say."""

import numpy as np
import pytest

from jaxpost.data.batches.loader import Loader
from jaxpost.data.batches.pairs import Pairs
from jaxpost.data.rows.shapes import Preference, normalise
from jaxpost.data.sources import csv, jsonl, read
from jaxpost.data.tokenizers import SentencePieceTokenizer
from jaxpost.recipes import configs, flags, run
from jaxpost.recipes.corpus import Files
from tests.conftest import ROOT
from tests.end_to_end.runs import ALIKE


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return SentencePieceTokenizer.load(shared_data / "tokenizers" / "mistral-v1.model")


@pytest.fixture
def batch(monkeypatch, tmp_path, tokenizer):
    """The first batch of a config's tiny form, with flags."""
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path))

    def first(name, *words):
        config = flags.override(configs.load(str(ROOT / "configs" / f"{name}.py:tiny")), words, "jaxpost train")
        return run.sources(config, tokenizer).loader.next()

    return first


@pytest.mark.parametrize("name", sorted({*ALIKE, "sft_gsm8k_lora"}))
def test_every_form_can_be_made(name):
    _, names = configs.listed(ROOT / "configs" / f"{name}.py")
    assert {"base", "fresh", "tiny"} <= set(names)
    assert len({configs.load(f"{ROOT}/configs/{name}.py:{form}").run for form in names}) == len(names)


def trained(batch, tokenizer):
    """What each trained stretch of the batch says."""
    said = []
    for targets, mask in zip(batch["targets"], batch["mask"], strict=True):
        cuts = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
        said += [tokenizer.decode(targets[a : b - 1].tolist()) for a, b in cuts.reshape(-1, 2)]
    return said


def test_completions_of_tables_and_json_lines(batch, tokenizer, shared_data):
    e2e, gsm8k = shared_data / "e2e_nlg" / "dev.csv", shared_data / "gsm8k" / "train.jsonl"
    for name, path, rows, field in (
        ("sft_e2e_lora", e2e, csv(e2e), "ref"),
        ("sft_gsm8k_lora", gsm8k, jsonl(gsm8k), "answer"),
    ):
        said = trained(batch(name, "--data.train", str(path), "--batches.seq-len", "512"), tokenizer)
        known = {row[field] for row in rows}
        assert len(said) >= 8 and set(said) <= known


def test_web_text_in_both_formats(batch, tokenizer, shared_data):
    def read(version):
        return batch("lm_c4", "--data.data-dir", str(shared_data / "tfds"), "--data.name", f"c4/en:{version}")

    one, other = read("3.0.1"), read("3.0.2")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert one["mask"].min() == 1 and (one["tokens"][:, 1:] == one["targets"][:, :-1]).all()


@pytest.mark.parametrize("name", ["dpo_hh", "reward_hh"])
def test_transcripts_make_pairs(name, tokenizer, shared_data, monkeypatch, tmp_path):
    """The tiny form's first batch; and of a few rows those with an empty answer, which the data have, are counted."""
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path))
    path = str(shared_data / "hh_rlhf" / "harmless.jsonl.gz")
    words = ("--data.train", path, "--batches.seq-len", "512")
    config = flags.override(configs.load(str(ROOT / "configs" / f"{name}.py:tiny")), words, "jaxpost train")
    unit = Pairs() if name == "dpo_hh" else config.objective.unit(config.rows)
    batch = run.sources(config, tokenizer, unit).loader.next()
    rows = read(path)
    said, known = trained(batch, tokenizer), {row[part] for row in rows for part in ("chosen", "rejected")}
    assert len(said) == 2 * (batch["weight"] > 0).sum() > 0
    assert all(any(one in whole for whole in known) for one in said)
    loader = Loader([rows[i] for i in (85, 86, 516, 517)], tokenizer, 1, 2048, "pack", epochs=1, unit=unit)
    assert (loader.next()["weight"] > 0).sum() == 2 and loader.counts().empty == 2


def test_preferences_are_read(shared_data, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path))
    corpus = Files(str(shared_data / "hh_rlhf" / "harmless.jsonl.gz"), hold=100)
    pairs = [normalise(row) for rows in (corpus.training(0), corpus.held_out(0)) for row in rows]
    assert len(pairs) == 1500
    assert all(isinstance(pair, Preference) and pair.prompt and pair.chosen != pair.rejected for pair in pairs)
