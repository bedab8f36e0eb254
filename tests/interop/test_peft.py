# SPDX-License-Identifier: Apache-2.0
"""PEFT's adapters against the logits that PEFT made of them (tests/golden/README.md), and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxpost import delta, trees
from jaxpost.faults import Fault
from jaxpost.interop import peft
from jaxpost.models.decoder import specs
from tests.interop.adapters import GOLDEN, base, error, numbers, trained, virtual

PEFT = GOLDEN / "peft"
CASES = sorted(path.parent.name for path in PEFT.glob("*/numbers.safetensors"))
ALIKE = (
    *("dora", "dora-one_layer", "ia3", "ia3-gpt2", "lora", "lora-one_layer", "lora-phi3"),
    *("p_tuning", "prefix-projected", "prompt", "prompt-gemma3"),
)
"""Those that differ from another case in which tensors there are, or where the file has them from, and not in what the
model does with them: their tensors and ours are compared, and no logits."""
TOLERANCE = 1e-4


@jax.jit
def apart(params, one, other):
    """How far from each other two deltas bring each weight."""
    return jax.tree.map(lambda x, y: abs(x - y).max(), delta.fold(params, one), delta.fold(params, other))


def read(name, adapter=None):
    base_name = numbers(PEFT / name)[0]
    return base_name, peft.load(adapter or PEFT / name, *base(base_name))


def changed(tmp_path, name, **fields):
    """A copy of a golden adapter whose config says other things."""
    shutil.copytree(PEFT / name, tmp_path / "changed", dirs_exist_ok=True)
    file = tmp_path / "changed" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return tmp_path / "changed"


def retold(tmp_path, name, change):
    """A copy of a golden adapter with other tensors."""
    shutil.copytree(PEFT / name, tmp_path / "changed", dirs_exist_ok=True)
    file = tmp_path / "changed" / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    return tmp_path / "changed"


def test_every_golden_adapter_says_how_it_was_made():
    assert len(CASES) == 26
    for name in CASES:
        with safe_open(PEFT / name / "numbers.safetensors", "numpy") as file:
            assert file.metadata()["made_by"].startswith(f"python tools/golden/peft_adapters.py {name} (")


def assert_same(one, other):
    """The same edits of the same numbers, up to a rounding."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, x), y in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7, err_msg=trees.path_of(path))


@pytest.mark.parametrize("name", CASES)
def test_logits_agree_and_what_is_written_is_the_same_adapter(name, tmp_path):
    base_name, edits = read(name)
    assert name in ALIKE or error(base_name, edits, PEFT / name) <= TOLERANCE
    config, params = base(base_name)
    for again in ("first", "second"):
        peft.save(tmp_path / again, config, edits, base_name, params)
    files = [{file.name: file.read_bytes() for file in (tmp_path / again).iterdir()} for again in ("first", "second")]
    assert files[0] == files[1] and len(files[0]) == 2
    again = read(name, tmp_path / "first")[1]
    if name == "dora-one_layer":  # magnitudes are those of all layers
        again, edits = ({path: edit.edits[1] for path, edit in one.items()} for one in (again, edits))
    assert_same(again, edits)


@pytest.mark.parametrize("name", [*ALIKE, "lora-gpt2", "adalora", "prefix", "lora-embed_head"])
def test_what_is_written_has_the_tensors_that_peft_wrote(name, tmp_path):
    base_name, edits = read(name)
    peft.save(tmp_path / "ours", *[base(base_name)[0], edits, base_name, base(base_name)[1]])
    theirs = load_file(PEFT / name / "adapter_model.safetensors")
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    theirs = {key: value for key, value in theirs.items() if "base_layer.weight" not in key}
    assert ours.keys() >= theirs.keys() if name == "dora-one_layer" else ours.keys() == theirs.keys()  # as above
    for key, value in ((key, ours[key]) for key in theirs):
        np.testing.assert_allclose(value, theirs[key], rtol=1e-6, atol=1e-7, err_msg=key)


METHODS = {
    "ranks": delta.Lora(rank=4, ranks={"layers/0/attn/q": 2}, alphas={"v": 3.0}, dropout=0.1),
    "biases": delta.Lora(rank=4, biases="all", targets=("q", "v")),
    "pissa": delta.Lora(rank=3, init="pissa", targets=("q", "up")),
    "olora": delta.Lora(rank=3, init="olora", rank_stabilised=True, targets=("v",)),
    "dora": delta.Dora(rank=2, targets=("q", "k", "v", "down")),
    "dora from a part": delta.Dora(rank=2, targets=("down",), init="pissa"),
    "adalora": delta.AdaLora(rank=4, target=2, targets=("q", "k", "v", "down")),
    "vera": delta.Vera(rank=4, targets=("q", "up")),
    "factors": delta.Scales(("o",)),
}
ON = [
    *[("ranks", "phi3"), ("ranks", "gemma3"), ("biases", "gpt2")],
    *[("pissa", "phi3"), ("olora", "llama-plain")],
    *[("dora", "gpt2"), ("dora from a part", "llama-plain")],
    *[("adalora", "phi3"), ("vera", "llama-plain"), ("factors", "gemma3")],
]


@pytest.mark.parametrize(("method", "name"), ON)
def test_what_methods_here_train_is_read_back_the_same(method, name, tmp_path):
    config, params = base(name)
    edits = trained(config, params, METHODS[method])
    peft.save(tmp_path / "ours", config, edits, name, params)
    again = peft.load(tmp_path / "ours", config, params)
    for path, off in jax.tree.leaves_with_path(apart(params, edits, again)):
        assert off <= 3e-5, trees.path_of(path)
    kind = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["peft_type"]
    assert kind == {"adalora": "ADALORA", "factors": "IA3"}.get(method, "LORA")


def test_prompts_and_prefixes_of_every_layer_are_read_back_bit_by_bit(tmp_path):
    config, _ = base("gemma3")  # in stacks of several places and a tail
    flat = trees.flatten(specs(config))
    draw = np.random.default_rng(0).standard_normal

    def filled(paths):
        shapes = {path: [n or 3 for n in flat[path].shape] for path in paths}  # a slot's own length is none
        return {path: delta.Insert(jnp.asarray(draw(shape), jnp.float32)) for path, shape in shapes.items()}

    for paths in (["prompt"], [path for path in flat if path.endswith(("prefix_k", "prefix_v"))]):
        edits = filled(paths)
        peft.save(tmp_path / "ours", config, edits)
        again = peft.load(tmp_path / "ours", config)
        assert again.keys() == edits.keys() and virtual(again) == 3
        for path, edit in edits.items():
            np.testing.assert_array_equal(again[path].value, edit.value)


def test_a_start_at_a_part_of_the_weight_is_written_as_lora_of_doubled_rank(tmp_path):
    config, params = base("llama-plain")
    edits = trained(config, params, delta.Lora(rank=3, init="pissa", targets=("q",)))
    peft.save(tmp_path / "ours", config, edits)
    said = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert said["r"] == 6 and said["init_lora_weights"] is True and said["target_modules"] == ["q_proj"]
    tensors = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    off = edits["layers/attn/q"].edits[0]
    np.testing.assert_array_equal(
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"][:3].T, off.a[1]
    )


def test_layers_without_an_adapter_are_not_written(tmp_path):
    config, params = base("llama-plain")
    name, edits = read("dora-one_layer")
    assert np.count_nonzero(edits["layers/attn/v"].edits[0].scale) == 1
    low = {path: edit.edits[0] for path, edit in edits.items()}  # the magnitudes need all layers
    peft.save(tmp_path / "ours", config, low, name, params)
    said = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert said["target_modules"] == ["model.layers.1.mlp.gate_proj", "model.layers.1.self_attn.v_proj"]


def test_missing_extra_and_misshapen_tensors_are_listed(tmp_path):
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"

    def change(tensors):
        tensors.pop(key.format(0, "A"))
        tensors["base_model.model.model.layers.0.extra.lora_A.weight"] = np.zeros((3, 32), np.float32)
        tensors[key.format(1, "B")] = tensors[key.format(1, "B")][:-1]
        return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}

    with pytest.raises(Fault) as fault:
        peft.load(retold(tmp_path, "lora", change), base("llama-plain")[0])
    told = str(fault.value)
    assert "1 missing: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in told
    assert "lora_B.weight [31, 5] instead of [32, 5]" in told
    assert "1 not known here: base_model.model.model.layers.0.extra.lora_A.weight" in told


def test_an_adapter_of_another_base_names_the_shapes():
    with pytest.raises(Fault, match=r"does not fit this base.*q_proj.lora_B.weight \[64, 3\] instead of \[32, 3\]"):
        peft.load(PEFT / "lora-rank_stabilised", base("llama-plain")[0])


def test_unknown_fields_are_named_in_a_warning_and_ignored(tmp_path):
    directory = changed(tmp_path, "lora", a_new_thing=True, another=1)
    with pytest.warns(UserWarning, match="ignored, as it is not known here: a_new_thing, another"):
        peft.load(directory, base("llama-plain")[0])


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("lora", {"peft_type": "LOHA"}, 'peft_type is "LOHA"; known: LORA, ADALORA, IA3'),
        ("lora", {"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ("lora", {"layer_replication": [[0, 1]]}, "layer_replication is"),
        ("lora", {"target_modules": ["c_attn"]}, "no module of this base is meant by it"),
        ("lora", {"target_modules": "(("}, "it is no regular expression"),
        ("lora", {"modules_to_save": ["score"]}, "this base has no score"),
        ("lora", {"bias": "some"}, "known: none, all, lora_only"),
        ("lora", {"lora_alpha": "x"}, 'lora_alpha is "x"; it must be a number'),
        ("lora", {"lora_dropout": "x"}, 'lora_dropout is "x"; it must be a number'),
        ("lora", {"rank_pattern": [4]}, "it must map patterns to ranks"),
        ("lora", {"alpha_pattern": {"q_proj": "a"}}, "it must map patterns to numbers"),
        ("lora", {"modules_to_save": 7}, "it must be a list of names"),
        ("lora-tied", {"ensure_weight_tying": False}, "one matrix in this model"),
        ("lora-tied", {"modules_to_save": ["lm_head"]}, "the embedding is the head too"),
        ("prompt", {"num_transformer_submodules": 2}, "only prompts of decoders are read"),
    ],
)
def test_what_has_no_form_here_is_refused_by_name(tmp_path, name, fields, told):
    base_name = numbers(PEFT / name)[0]
    with pytest.raises(Fault, match=told.replace("(", r"\(") if "((" not in told else told):
        peft.load(changed(tmp_path, name, **fields), *base(base_name))


def test_files_that_are_no_adapter(tmp_path):
    config = base("llama-plain")[0]
    with pytest.raises(Fault, match="no adapter_config.json there"):
        peft.load(tmp_path, config)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(Fault, match="must be a JSON object"):
        peft.load(tmp_path, config)
    shutil.copy(PEFT / "lora" / "adapter_config.json", tmp_path)
    with pytest.raises(Fault, match="no weights of an adapter there, neither adapter_model.safetensors nor"):
        peft.load(tmp_path, config)
    whole = (PEFT / "lora" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(Fault, match="not a whole safetensors file"):
        peft.load(tmp_path, config)


def test_what_is_held_whole_needs_the_base():
    with pytest.raises(Fault, match="reading it needs the base's weights"):
        peft.load(PEFT / "lora-saved", base("llama-plain")[0])


Q, NORM = "layers/attn/q", "norm"


def fresh(*methods):
    config, params = base("llama-plain")
    made = {}
    for method in methods:
        made |= {"prompt": delta.Insert(jnp.ones((2, 32)))} if method == "prompt" else trained(config, params, method)
    return made


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ((delta.Full(targets=("norm",)),), "norm changes without a low-rank edit, factors or a prompt"),
        ((delta.Adapters(reduction=8),), "write --to adapterhub"),
        ((delta.Lora(rank=2, targets=("q",)), delta.Scales(("k",))), "has an edit of another kind than the factors of"),
        ((delta.Lora(rank=2, targets=("q",)), "prompt"), "PEFT's prompts stand alone"),
        ((delta.BitFit(add=True),), "changes without a low-rank edit"),
        ((delta.Lora(rank=2, targets=("q",)), delta.BitFit(add=True)), "PEFT can add one only beside a low-rank edit"),
        ((delta.Dora(rank=2, targets=("q",)), delta.Lora(rank=2, targets=("k",))), "has factors without magnitudes"),
    ],
)
def test_deltas_that_peft_has_no_form_for_are_refused_by_name(tmp_path, methods, told):
    config, params = base("llama-plain")
    with pytest.raises(Fault, match=told):
        peft.save(tmp_path / "ours", config, fresh(*methods), "", params)
    assert not (tmp_path / "ours").exists()


def test_a_weight_changed_under_another_edit_is_refused(tmp_path):
    config, params = base("llama-plain")
    low = trained(config, params, delta.Lora(rank=2, targets=("q",)))[Q]
    both = {Q: delta.Stack((delta.Dense(jnp.ones_like(params["layers"]["attn"]["q"])), low))}
    with pytest.raises(Fault, match="q_proj has a plain change under another edit"):
        peft.save(tmp_path / "ours", config, both, "", params)


def test_a_directory_that_holds_something_else_is_not_written_over(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    config, params = base("llama-plain")
    with pytest.raises(Fault, match="exists and holds no adapter"):
        peft.save(tmp_path, config, fresh(delta.Lora(rank=2)), "", params)
