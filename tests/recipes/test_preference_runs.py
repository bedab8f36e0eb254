# SPDX-License-Identifier: Apache-2.0
"""Runs on preferences, from a config to what lies in their directories; and configs that cannot be meant."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxpost.data.tokenizers import SentencePieceTokenizer
from jaxpost.delta import Head, Lora, Prompt
from jaxpost.faults import Fault
from jaxpost.models import decoder
from jaxpost.recipes import dpo, kto, reward, run
from jaxpost.recipes.base import Fresh, Loaded
from jaxpost.recipes.configs import load
from jaxpost.recipes.corpus import Files
from jaxpost.recipes.preferences import moving, references
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.train.state import State
from tests.conftest import ROOT
from tests.data.batches import test_unpaired as preferences
from tests.end_to_end.runs import TOKENIZER
from tests.train.tiny import CONFIG

MODEL = replace(CONFIG, vocab=2048, layers=1, max_length=192)


@pytest.fixture
def alone(monkeypatch):
    """One device."""
    for recipe in (kto, reward):
        monkeypatch.setattr(recipe, "make_mesh", lambda shape: make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]))


def tiny(name, **changes):
    config = load(f"{ROOT}/configs/{name}.py:tiny")
    return replace(config, model=Fresh(MODEL, TOKENIZER), **changes)


def told(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_halves_of_preferences_against_a_stored_reference(alone, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in preferences.PAIRS * 4))
    config = tiny("kto_nano", data=Files(str(rows), hold=4), reference="stored", review=kto.Review(2, 0))
    kto.main(config, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "what the reference says of 40 rows is kept in" in said and "told apart" in said
    first = next(line for line in told(tmp_path) if "eval_margin" in line)
    assert first["step"] == 0 and abs(first["eval_chosen_reward"]) < 1e-5 > abs(first["eval_rejected_reward"])
    assert first["eval_accuracy"] == pytest.approx(0.5, abs=0.5)
    table = json.loads((tmp_path / "evals.json").read_text())["rows"]
    assert [row["task"] for row in table] == ["likelier as a whole", "likelier by the token"]
    assert "likelier by the token" in (tmp_path / "report.html").read_text()
    with pytest.raises(Fault, match=r"reference\.npz: .* is for other data \(rows and seq_len changed since\); remove"):
        kto.main(replace(config, data=Files(str(rows), hold=5), batches=kto.Batches(2, 160)), tmp_path)


def test_a_reward_model_and_how_far_it_can_be_believed(alone, tmp_path, capsys):
    reward.main(tiny("reward_nano"), tmp_path)
    found = json.loads((tmp_path / "rewards.json").read_text())
    assert 0 <= found["accuracy"] <= 1 and 0 <= found["expected calibration error"] <= 1
    assert sum(each["count"] for each in found["reliability"]) == found["pairs"] > 1
    assert "held out: accuracy" in capsys.readouterr().out
    assert "Expected calibration error" in (tmp_path / "report.html").read_text()
    assert {"eval_accuracy", "eval_margin", "eval_loss"} <= told(tmp_path)[-1].keys()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (dpo.Config("", objective=dpo.Dpo("aot"), train=run.Training(microbatches=2)), "aot compares each pair with"),
        (dpo.Config("", objective=dpo.Simpo(), reference="stored"), "Simpo knows no reference"),
        (dpo.Config("", moving=dpo.Moving(), reference="stored"), "moving changes the reference"),
        (dpo.Config("", objective=dpo.Dpo(ld_alpha=0.5), reference="stored"), "ld_alpha weighs tokens"),
        (dpo.Config("", delta=Prompt(place="between")), "stands between question and answer"),
        (kto.Config("", train=run.Training(microbatches=2)), "point of reference that is a mean over the batch"),
        (kto.Config("", moving=dpo.Moving(), reference="stored"), "moving changes the reference"),
        (reward.Config("", delta=Lora()), r"no head, and BradleyTerry .* Both\(Lora\(\), Head\(1\)\)"),
        (reward.Config("", delta=Head(1), objective=reward.TwoClass()), "a head of 1 classes, and TwoClass"),
    ],
)
def test_what_does_not_go_together(config, says):
    check = {dpo.Config: dpo.check, kto.Config: kto.check}.get(type(config), lambda c: reward.check(c, CONFIG))
    with pytest.raises(Fault, match=says):
        check(config)


def test_a_reference_is_not_stored_for_rows_that_change(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 12)
    data = dpo.Mixed({"one": Files(str(rows), hold=2)})
    model = Loaded(MODEL, SentencePieceTokenizer.load(TOKENIZER), {}, decoder.specs(MODEL))
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    with pytest.raises(Fault, match="asks every row once, and these are others in every epoch"):
        config = dpo.Config("", data=data, reference="stored")
        references.known(config, tmp_path / "run", model, dpo.unit_of(config), mesh)


def test_a_damaged_reference_is_not_read(tmp_path):
    (tmp_path / references.FILE).write_bytes(b"no zip")
    with pytest.raises(Fault, match="is damaged: remove it"):
        references._read(tmp_path / references.FILE, {})


def test_a_reference_follows_when_it_is_time():
    def step(state, frozen, batch, key):
        return State(state.step + 1, {"w": state.trainable["w"] + 1.0}, None, state.extra), {}

    state = State(jnp.int32(0), {"w": jnp.zeros(())}, None, {"w": jnp.zeros(())})
    followed, seen = moving.following(step, moving.Moving(every=2, share=0.5)), []
    for _ in range(4):
        state, _ = followed(state, {}, {}, jax.random.key(0))
        seen.append(float(state.extra["w"]))
    assert seen == [0.0, 1.0, 1.0, 2.5]
