# SPDX-License-Identifier: Apache-2.0
"""AdapterHub's adapters against the logits that its library made of them (tests/golden/README.md)."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxpost import delta
from jaxpost.faults import Fault
from jaxpost.interop import adapterhub, adapters, pickled
from tests.interop.adapters import GOLDEN, base, error, numbers

HUB = GOLDEN / "adapterhub"
SOURCES = {
    **dict.fromkeys(("behind_attention", "houlsby", "houlsby-gpt2", "pfeiffer-alone"), "own"),
    **dict.fromkeys(("pfeiffer", "pfeiffer-mistral", "plus-gpt2"), "sum"),
    **dict.fromkeys(("parallel", "parallel-gpt2"), "stream"),
}
"""The golden adapters, and what they read."""


def test_every_golden_adapter_says_how_it_was_made():
    assert sorted(path.parent.name for path in HUB.glob("*/numbers.safetensors")) == sorted(SOURCES)
    for name in SOURCES:
        with safe_open(HUB / name / "numbers.safetensors", "numpy") as file:
            assert file.metadata()["made_by"].startswith(f"python tools/golden/adapterhub.py {name} (")


@pytest.mark.parametrize("name", SOURCES)
def test_logits_agree_and_what_is_written_is_the_same_adapter(name, tmp_path):
    base_name, _, _ = numbers(HUB / name)
    config, params = base(base_name)
    edits = adapters.load(HUB / name, config, params)
    assert {edit.source for edit in edits.values()} == {SOURCES[name]}
    assert error(base_name, edits, HUB / name) <= 1e-5
    adapterhub.save(tmp_path / "ours", config, edits, base_name)
    again = adapterhub.load(tmp_path / "ours", config)
    assert again.keys() == edits.keys()
    for path, edit in edits.items():
        for part in ("down", "down_bias", "up", "up_bias"):
            np.testing.assert_array_equal(getattr(again[path], part), getattr(edit, part))
        for part in ("activation", "source", "scale"):
            assert getattr(again[path], part) == getattr(edit, part)


@pytest.mark.parametrize("name", ["pfeiffer", "parallel"])
def test_what_is_written_has_the_tensors_and_the_fields_that_the_library_wrote(name, tmp_path):
    config = base("llama-two")[0]
    adapterhub.save(tmp_path / "ours", config, adapterhub.load(HUB / name, config), name="ours")
    theirs, ours = (load_file(directory / "adapter.safetensors") for directory in (HUB / name, tmp_path / "ours"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
    said = [json.loads((at / "adapter_config.json").read_text())["config"] for at in (HUB / name, tmp_path / "ours")]
    assert said[1].items() <= (said[0] | {"reduction_factor": said[1]["reduction_factor"]}).items()


def test_what_torch_pickled_is_read_without_it_and_nothing_else_is():
    found = pickled.read(HUB / "houlsby" / "pytorch_adapter.bin")
    assert found["model.layers.0.attention_adapters.adapters.ours.adapter_down.0.weight"].shape == (8, 32)
    assert len(found) == 16 and all(np.any(tensor) for tensor in found.values())


def test_a_pickle_that_names_code_is_not_run(tmp_path):
    import pickle
    import zipfile

    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": Harm()}))
    with pytest.raises(Fault, match="it names builtins.print"):
        pickled.read(tmp_path / "x.bin")


@pytest.mark.parametrize(("said", "meant"), [("gelu", "gelu_tanh"), ("gelu_orig", "gelu"), ("gelu_new", "gelu_tanh")])
def test_files_that_name_no_version_mean_older_activations(tmp_path, said, meant):
    config = base("llama-two")[0]
    adapterhub.save(tmp_path / "ours", config, {"layers/mlp/adapter": bottleneck(activation="gelu")})
    file = tmp_path / "ours" / "adapter_config.json"
    whole = json.loads(file.read_text())
    assert whole["version"] == "adapters.1.3.0" and whole["config"]["non_linearity"] == "gelu"
    del whole["version"]
    file.write_text(json.dumps(whole | {"config": whole["config"] | {"non_linearity": said}}))
    read = adapterhub.load(tmp_path / "ours", config)["layers/mlp/adapter"]
    assert read.activation == meant
    adapterhub.save(tmp_path / "ours", config, {"layers/mlp/adapter": read})
    assert adapterhub.load(tmp_path / "ours", config)["layers/mlp/adapter"].activation == meant


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"architecture": "lora"}, "only bottleneck adapters are read"),
        ({"non_linearity": "selu"}, "known: relu, gelu"),
        ({"phm_layer": True}, "Kronecker"),
        ({"scaling": "slowly"}, "it must be a number, or learned or channel"),
        ({"scaling": "learned"}, r"4 missing: .*adapters.ours.scaling"),
        ({"ln_before": True}, "the adapter has a norm of its own"),
        ({"original_ln_after": False}, "the stream is added 0 times, and must be once"),
        ({"original_ln_before": True, "residual_before_ln": False}, "the stream is added 2 times, and must be once"),
        ({"original_ln_before": True, "residual_before_ln": "post_add"}, "it must be true or false; the library fails"),
        ({"is_parallel": True, "original_ln_after": False}, "the stream is added 0 times"),
        ({"reduction_factor": 2}, r"adapter_down.0.weight \[8, 32\] instead of \[16, 32\]"),
    ],
)
def test_what_has_no_form_here_is_refused_by_name(tmp_path, fields, told):
    shutil.copytree(HUB / "houlsby", tmp_path / "changed")
    file = tmp_path / "changed" / "adapter_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"config": said["config"] | fields}))
    with pytest.raises(Fault, match=told):
        adapterhub.load(tmp_path / "changed", base("llama-two")[0])


def bottleneck(**options):
    parts = {"down": (2, 32, 4), "down_bias": (2, 4), "up": (2, 4, 32), "up_bias": (2, 32)}
    return delta.Bottleneck(**{name: np.ones(shape, np.float32) for name, shape in parts.items()}, **options)


def test_layers_without_an_adapter_are_left_out_and_widths_may_differ(tmp_path):
    edit = bottleneck()
    for name in ("down", "down_bias", "up", "up_bias"):
        getattr(edit, name)[0] = 0
    config = base("llama-two")[0]
    adapterhub.save(tmp_path / "ours", config, {"layers/mlp/adapter": edit}, name="mine")
    said = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["config"]
    assert said["leave_out"] == [0] and said["reduction_factor"] == 8 and not said["mh_adapter"]
    tensors = load_file(tmp_path / "ours" / "adapter.safetensors")
    assert set(tensors) == {
        f"model.layers.1.output_adapters.adapters.mine.adapter_{part}"
        for part in ("down.0.weight", "down.0.bias", "up.weight", "up.bias")
    }


@pytest.mark.parametrize(
    ("name", "edits", "told"),
    [
        ("llama-two", {}, "the delta is empty"),
        ("llama-two", {"layers/mlp/adapter": bottleneck(source="beside")}, "reads what its layer was given, normed"),
        ("llama-two", {"prompt": delta.Insert(jnp.ones((2, 32)))}, r"prompt has an edit \(Insert\)"),
        (
            "llama-two",
            {"layers/mlp/adapter": bottleneck(), "layers/attn/adapter": bottleneck(scale=2.0)},
            "differ in activation, source or scale",
        ),
        (
            "llama-two",
            {"layers/mlp/adapter": bottleneck(source="sum"), "layers/attn/adapter": bottleneck()},
            "differ in activation, source or scale",
        ),
        ("phi3", {"layers/mlp/adapter": bottleneck()}, "the library has no phi3"),
    ],
)
def test_deltas_that_the_library_has_no_form_for_are_refused_by_name(tmp_path, name, edits, told):
    with pytest.raises(Fault, match=told):
        adapterhub.save(tmp_path / "ours", base(name)[0], edits)
    assert not (tmp_path / "ours").exists()
