# SPDX-License-Identifier: Apache-2.0
"""`jaxpost merge` on runs that were trained: what is written is what the deltas say, and nothing is lost on the way."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import delta, quant, trees
from jaxpost.cli.merging import merge
from jaxpost.delta.refold import refold
from jaxpost.faults import Fault
from jaxpost.interop import hf
from jaxpost.recipes import trained

CHANGED = "layers/attn/q"


@pytest.fixture(scope="module")
def run(finished):
    return str(finished("flan_nano_lora").run)


def leaf(tree, path=CHANGED):
    return np.asarray(delta.dense(trees.flatten(tree)[path], jnp.float32))


def test_one_run_is_folded_into_its_base(run, tmp_path):
    merge((run, str(tmp_path / "out")))
    model = trained.read(run)
    _, found = hf.load(tmp_path / "out")
    np.testing.assert_allclose(leaf(found), leaf(model.folded), rtol=1e-6)
    assert np.abs(leaf(found) - leaf(model.base)).max() > 1e-4


def test_several_are_their_weighted_sum(run, tmp_path):
    merge((run, run, str(tmp_path / "out")), weights=(0.25, 0.5))
    model = trained.read(run)
    _, found = hf.load(tmp_path / "out")
    wanted = leaf(model.base) + 0.75 * (leaf(model.folded) - leaf(model.base))
    np.testing.assert_allclose(leaf(found), wanted, atol=1e-6)


def test_an_adapter_of_a_rank(run, tmp_path):
    merge((run, run, str(tmp_path / "out")), how="svd", rank=1, to="peft")
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["r"] == 1 and (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_quantised_base_stays_in_its_format_and_the_drift_is_told(run, tmp_path, capsys):
    packed = tmp_path / "run"
    shutil.copytree(run, packed)
    config = json.loads((packed / "config.json").read_text())
    config["model"]["quant"] = "int8"
    (packed / "config.json").write_text(json.dumps(config))
    merge((str(packed), str(tmp_path / "out")))
    said = " ".join("".join(capsys.readouterr()).split())
    assert "35 matrices were merged and quantised again as the base is" in said and "% of what was learned" in said
    model = trained.read(str(packed))
    weights, drifts = refold(model.base, model.delta)
    _, found = hf.load(tmp_path / "out")
    np.testing.assert_allclose(leaf(found), leaf(weights), rtol=1e-6)
    again = quant.quantise_like(jnp.asarray(leaf(found)), trees.flatten(model.base)[CHANGED])
    np.testing.assert_array_equal(again.codes, trees.flatten(weights)[CHANGED].codes)
    assert f"{max(d.of_weight.max() for d in drifts.values()):.2%} at worst" in said
    merge((str(packed), str(tmp_path / "exact")), requantise=False)
    np.testing.assert_allclose(leaf(hf.load(tmp_path / "exact")[1]), leaf(model.folded), rtol=1e-6)


def test_what_cannot_be_merged(run, finished, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(Fault, match=r"jaxpost merge RUN \[RUN ...\] OUT"):
        merge((out,))
    with pytest.raises(Fault, match="--rank 2: cat keeps all of what was learned; say --how svd"):
        merge((run, out), rank=2)
    with pytest.raises(Fault, match="--how ties makes whole matrices.*give a --rank"):
        merge((run, run, out), how="ties", to="peft")
    with pytest.raises(Fault, match="--dtype bfloat16 is of a model directory"):
        merge((run, out), dtype="bf16", to="peft")
    with pytest.raises(Fault, match="nano is no run directory"):
        merge((run, "nano", out))
    with pytest.raises(Fault, match="starts from another model"):
        merge((run, str(finished("nano_pretrain").run), out))
    with pytest.raises(Fault, match="only some of the deltas change embed, "):
        merge((run, str(finished("flan_nano_full").run), out))
    with pytest.raises(Fault, match="is a run directory; write the model to another one"):
        merge((run, run))
