# SPDX-License-Identifier: Apache-2.0
"""Loading and saving model directories: what goes round, what is refused and how, what a failed save leaves."""

import dataclasses
import json
import math
import resource
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpost import params as parameters
from jaxpost import trees
from jaxpost.data.tokenizers import Virtual
from jaxpost.faults import Fault
from jaxpost.interop import load, save
from jaxpost.models.architecture import Decoder, specs
from jaxpost.models.rope import Llama3, Rope
from jaxpost.quant import Int8, dequantise, quantise
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.shard import shardings as lay_out

SMALL = Decoder(vocab=48, d=16, layers=3, heads=4, kv_heads=2, head_size=6, ffn=24, max_length=64)


def fresh(config, seed=0):
    """Every leaf random, norms too, so that no two are alike."""
    flat = {path: spec for path, spec in trees.flatten(specs(config)).items() if not spec.optional}
    random = np.random.default_rng(seed)
    filled = {path: jnp.asarray(random.standard_normal(spec.shape), spec.dtype) for path, spec in flat.items()}
    return trees.unflatten({path: filled.get(path) for path in trees.flatten(specs(config))})


@pytest.fixture
def model(tmp_path):
    params = fresh(SMALL)
    save(tmp_path / "model", SMALL, params)
    return tmp_path / "model"


def assert_same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        if leaf is None:
            assert found[path] is None, path
        else:
            assert found[path].dtype == leaf.dtype, path
            np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf), err_msg=path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 2000])
def test_round_trip(tmp_path, dtype, tied, shard_bytes):
    config = dataclasses.replace(SMALL, tied=tied, dtype=dtype)
    params = fresh(config)
    save(tmp_path / "m", config, params, shard_bytes=shard_bytes)
    assert (len(list((tmp_path / "m").glob("*.safetensors"))) > 1) == (shard_bytes == 2000)
    again, loaded = load(tmp_path / "m")
    assert again == config
    assert_same(loaded, params)


def test_shards_keep_to_their_size_and_the_index_counts(tmp_path):
    save(tmp_path / "m", SMALL, fresh(SMALL), shard_bytes=4000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    count = parameters.count(specs(SMALL))
    assert index["metadata"] == {"total_parameters": count, "total_size": 4 * count}
    for file in sorted((tmp_path / "m").glob("*.safetensors")):
        tensors = load_file(file)
        assert {index["weight_map"][name] for name in tensors} == {file.name}
        assert sum(value.nbytes for value in tensors.values()) <= 4000 or len(tensors) == 1


def test_rope_scaling_goes_round(tmp_path):
    rope = Rope(5e5, Llama3(8.0, 1.0, 4.0, 32))
    config = dataclasses.replace(SMALL, rope=rope, norm_eps=3e-6)
    save(tmp_path / "m", config, fresh(config))
    assert load(tmp_path / "m")[0] == config


def test_other_types_are_rounded_once(tmp_path):
    params = fresh(SMALL)
    save(tmp_path / "m", SMALL, params, dtype=jnp.bfloat16)
    config, loaded = load(tmp_path / "m")
    assert config == dataclasses.replace(SMALL, dtype="bfloat16")
    assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    wide, widened = load(tmp_path / "m", dtype="float32")
    assert wide == SMALL
    assert_same(widened, jax.tree.map(lambda x: x.astype(jnp.float32), loaded))


def test_quantised_leaves_are_decoded(tmp_path):
    params = fresh(SMALL)
    codes = quantise(params["layers"]["mlp"]["up"], specs(SMALL)["layers"]["mlp"]["up"], Int8())
    params["layers"]["mlp"]["up"] = codes
    save(tmp_path / "m", SMALL, params)
    params["layers"]["mlp"]["up"] = dequantise(codes)
    assert_same(load(tmp_path / "m")[1], params)


def test_one_filled_bias_slot_writes_its_kind_whole(tmp_path):
    params = fresh(SMALL)
    shape = specs(SMALL)["layers"]["attn"]["v_bias"].shape
    params["layers"]["attn"]["v_bias"] = jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)
    save(tmp_path / "m", SMALL, params)
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written["attention_bias"] is True and written["mlp_bias"] is False
    _, loaded = load(tmp_path / "m")
    for name in ("q_bias", "k_bias", "o_bias"):
        params["layers"]["attn"][name] = jnp.zeros(specs(SMALL)["layers"]["attn"][name].shape)
    assert_same(loaded, params)


def test_parameters_are_placed_as_the_shardings_say(model):
    mesh = make_mesh(MeshShape(fsdp=4, tensor=2))
    wanted = lay_out(specs(SMALL), mesh)
    _, loaded = load(model, shardings=wanted)
    assert_same(loaded, fresh(SMALL))
    flat = trees.flatten(wanted)
    for path, leaf in trees.flatten(loaded).items():
        assert leaf is None or leaf.sharding == flat[path], path
    assert loaded["layers"]["attn"]["q"].addressable_shards[0].data.shape == (3, 4, 2, 6)
    with pytest.raises(ValueError, match="nothing about embed"):
        load(model, shardings=trees.unflatten(flat | {"embed": None}))


# What the weights may be


def edit(directory, **fields):
    file = directory / "config.json"
    values = json.loads(file.read_text()) | fields
    file.write_text(json.dumps(values))


def rewrite(model, change):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def test_all_tensors_that_do_not_fit_are_listed_in_one_fault(model):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(6, np.float32)
        tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((16, 24), np.float32)

    rewrite(model, change)
    with pytest.raises(Fault) as fault:
        load(model)
    assert str(fault.value) == (
        f"{model}: the tensors do not fit config.json: 1 missing: model.norm.weight; "
        "1 not known here: model.layers.0.self_attn.q_norm.weight; "
        "1 of another shape than config.json says: model.layers.1.mlp.up_proj.weight [16, 24] instead of [24, 16]"
    )


def test_all_names_are_listed_and_those_of_all_layers_as_one(model):
    edit(model, attention_bias=True)
    with pytest.raises(Fault) as fault:
        load(model)
    names = ", ".join(f"model.layers.{{0-2}}.self_attn.{kind}_proj.bias" for kind in "qkvo")
    assert str(fault.value).endswith(f"12 missing: {names}")


def test_layers_with_gaps_are_listed_as_ranges(model):
    lost = [f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 2)] + ["model.norm.weight"]
    rewrite(model, lambda tensors: [tensors.pop(name) for name in lost])
    with pytest.raises(Fault) as fault:
        load(model)
    assert str(fault.value).endswith("3 missing: model.layers.{0,2}.mlp.up_proj.weight, model.norm.weight")


def test_rotary_frequencies_of_old_checkpoints_are_passed_over(model):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(model, lambda tensors: tensors.update({name: np.ones(3, np.float32)}))
    assert_same(load(model)[1], fresh(SMALL))


def test_a_tied_head_may_be_stored_twice_but_not_differ(tmp_path):
    model, config = tmp_path / "m", dataclasses.replace(SMALL, tied=True)
    save(model, config, fresh(config))
    rewrite(model, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    assert_same(load(model)[1], fresh(config))
    rewrite(model, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    with pytest.raises(Fault, match="tie_word_embeddings, but lm_head.weight and model.embed_tokens.weight differ"):
        load(model)


@pytest.mark.parametrize("kept", [0, 5, 100, 3000, -1])
def test_a_truncated_file_is_named(model, kept):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(Fault, match=r"model\.safetensors: not a whole safetensors file"):
        load(model)


def test_a_corrupt_file_is_named(model):
    (model / "model.safetensors").write_bytes(b"no tensors at all " * 100)
    with pytest.raises(Fault, match=r"model\.safetensors: not a whole safetensors file"):
        load(model)


def test_integer_weights_are_refused(model):
    name = "model.norm.weight"
    rewrite(model, lambda tensors: tensors.update({name: np.ones(16, np.int8)}))
    with pytest.raises(Fault, match=f"tensor {name} is of type I8"):
        load(model)


def test_quantised_checkpoints_are_refused(model):
    name = "model.layers.0.mlp.up_proj.qweight"
    rewrite(model, lambda tensors: tensors.update({name: np.ones((2, 24), np.int32)}))
    with pytest.raises(Fault, match=f"tensor {name} is of quantised weights"):
        load(model)


def test_missing_pieces_are_named(tmp_path, model):
    with pytest.raises(Fault, match="nowhere: no such directory"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Fault, match=r"empty: no config\.json"):
        load(tmp_path / "empty")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(Fault, match=r"neither model\.safetensors nor .*; pytorch_model\.bin is in another format"):
        load(model)
    (model / "config.json").write_text('{"model_type": ')
    with pytest.raises(Fault, match=r"config\.json: cannot be read as JSON"):
        load(model)


def test_a_broken_index_is_named(tmp_path):
    model = tmp_path / "m"
    save(model, SMALL, fresh(SMALL), shard_bytes=8000)
    first = sorted(model.glob("*.safetensors"))[0]
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(Fault, match=f"names files that are not there: {first.name}$"):
        load(model)
    (tmp_path / "elsewhere").rename(first)
    index = model / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["model.norm.weight"] = first.name
    index.write_text(json.dumps(said))
    with pytest.raises(Fault, match=f"says that tensor model.norm.weight is in {first.name}; it is not there"):
        load(model)
    (model / "model.safetensors.index.json").write_text('{"weights": 1}')
    with pytest.raises(Fault, match=r"index\.json: no JSON object with a weight_map"):
        load(model)


# What saving leaves behind


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def full_disk():
    """No file of this process may grow above 8 kB: what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(size=8000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_what_was_there(model, full_disk):
    before = contents(model)
    params = fresh(SMALL, seed=1)
    full_disk()
    with pytest.raises(Fault, match="model: the model could not be saved .* untouched"):
        save(model, SMALL, params)
    assert contents(model) == before
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_a_full_disk_leaves_no_new_directory(tmp_path, full_disk):
    params = fresh(SMALL)
    full_disk()
    with pytest.raises(Fault, match="could not be saved"):
        save(tmp_path / "new", SMALL, params)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_swap_puts_the_old_model_back(model, monkeypatch):
    before, rename = contents(model), Path.rename

    def refuse(source, target):
        if source.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(Fault, match="Input/output error"):
        save(model, SMALL, fresh(SMALL, seed=1))
    assert contents(model) == before


def test_saving_over_a_model_replaces_it_and_keeps_other_files(model):
    save(model, SMALL, fresh(SMALL), shard_bytes=8000)
    assert not (model / "model.safetensors").exists()
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "original").mkdir()
    (model / "original" / "notes").write_text("kept")
    save(model, SMALL, fresh(SMALL, seed=1))
    assert_same(load(model)[1], fresh(SMALL, seed=1))
    assert sorted(contents(model)) == ["chat_template.jinja", "config.json", "model.safetensors", "original/notes"]
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Fault, match="exists and holds no model"):
        save(tmp_path, SMALL, fresh(SMALL))
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_what_a_killed_save_left_is_cleared(model):
    partial = model.parent / ".model.partial"
    shutil.copytree(model, partial)
    (partial / "stale").write_text("old")
    save(model, SMALL, fresh(SMALL, seed=1))
    assert sorted(contents(model.parent)) == ["model/config.json", "model/model.safetensors"]


class Words:
    """As much of a tokenizer as saving asks for."""

    vocab_size, bos, eos, pad = 48, None, 7, 0

    ends, template, continues, virtual = (7,), None, True, Virtual()

    def encode(self, text): ...
    def encode_offsets(self, text, after=""): ...
    def encode_offsets_batch(self, texts): ...
    def decode(self, ids): ...
    def piece(self, token): ...

    def save(self, directory):
        (Path(directory) / "tokenizer.model").write_text("words")


def test_the_tokenizer_is_saved_with_the_model(tmp_path):
    save(tmp_path / "m", SMALL, fresh(SMALL), tokenizer=Words())
    assert (tmp_path / "m" / "tokenizer.model").read_text() == "words"
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written["eos_token_id"] == 7 and written["bos_token_id"] is None and written["pad_token_id"] == 0


def test_no_file_of_another_tokenizer_stays_beside_the_one_that_is_given(model):
    for old in ("chat_template.jinja", "special_tokens_map.json", "additional_chat_templates/tools.jinja", "README.md"):
        (model / old).parent.mkdir(exist_ok=True)
        (model / old).write_text("old")
    save(model, SMALL, fresh(SMALL), tokenizer=Words())
    assert sorted(contents(model)) == ["README.md", "config.json", "model.safetensors", "tokenizer.model"]


def test_parameters_that_do_not_fit_are_listed_before_anything_is_written(tmp_path):
    params = fresh(SMALL)
    params["norm"] = None
    params["prompt"] = jnp.ones((4, 16))
    params["layers"]["mlp"]["gate"] = jnp.ones((3, 24, 16))
    with pytest.raises(Fault) as fault:
        save(tmp_path / "m", SMALL, params)
    assert str(fault.value) == (
        "the parameters do not make a LlamaForCausalLM: 1 missing: norm; 1 without a place there: prompt; "
        "1 of another shape than the config says: layers/mlp/gate [3, 24, 16] instead of [3, 16, 24]"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_is_no_model_type_is_refused(tmp_path, model):
    for dtype in ("int8", "bf17"):
        with pytest.raises(Fault, match=f"dtype {dtype}: models are loaded and saved as one of float32"):
            load(model, dtype=dtype)
    with pytest.raises(Fault, match="dtype float64"):
        save(tmp_path / "m", SMALL, fresh(SMALL), dtype="float64")
