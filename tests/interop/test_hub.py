# SPDX-License-Identifier: Apache-2.0
"""Models by name: what is fetched, from where, and what is said when it cannot be."""

import json
import sys

import fsspec
import pytest

from jaxpost.faults import Fault
from jaxpost.interop import families, hub
from jaxpost.models.architecture import Decoder
from jaxpost.recipes import base

errors = pytest.importorskip("huggingface_hub.errors", reason="needs the hf extra")
SMALL = Decoder(vocab=48, d=16, layers=3, heads=4, kv_heads=2, head_size=6, ffn=24, max_length=64)


@pytest.fixture(autouse=True)
def forgotten():
    hub._repository.cache_clear()
    hub._remote.cache_clear()


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the hub was asked for; it answers with a directory, or raises what it is given."""
    import huggingface_hub

    calls, answer = [], [str(tmp_path)]

    def snapshot_download(name, **how):
        calls.append((name, how))
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls, answer


def test_a_directory_that_is_here_is_taken(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert str(hub.directory("org/name")) == "org/name"
    assert hub.directory(str(tmp_path)) == tmp_path
    assert str(hub.directory("nothing_like_that")) == "nothing_like_that"  # no repository's name: the reader says so
    assert asked[0] == []


def test_the_hub_is_asked_for_what_is_needed_and_once(tmp_path, asked):
    calls, _ = asked
    families.write(tmp_path, SMALL, {})
    model = base.Pretrained("org/name@v2", dtype="bfloat16")
    assert base.config_of(model).dtype == "bfloat16" and base.config_of(model).d == 16
    assert base.directory(model) == tmp_path
    [(name, first), (_, second)] = calls
    assert name == "org/name" and first["revision"] == second["revision"] == "v2"
    assert {"config.json", "tokenizer.json", "tokenizer.model"} <= set(first["allow_patterns"])
    assert not any(pattern.endswith(".safetensors") for pattern in first["allow_patterns"])
    weights = [pattern for pattern in second["allow_patterns"] if pattern not in first["allow_patterns"]]
    assert weights == ["model.safetensors"]  # not consolidated.safetensors, onnx/*: the same once more


def test_the_index_says_how_shards_are_named(tmp_path, asked):
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.directory("org/name")
    first, second = (set(how["allow_patterns"]) for _, how in asked[0])
    assert "model.safetensors.index.json" in first
    assert second - first == {"model.safetensors", "part-1.safetensors", "part-2.safetensors"}


def test_an_index_that_cannot_be_read_is_named(tmp_path, asked):
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(Fault, match="model.safetensors.index.json: no JSON object with a weight_map"):
        hub.directory("org/name")


class Answer:
    """As much of a reply as the hub's errors ask for."""

    headers: dict[str, str] = {}
    request = None
    status_code = 404


@pytest.mark.parametrize(
    "error, said",
    [
        (errors.GatedRepoError("403", response=Answer()), "its owner wants to be asked first"),
        (errors.RepositoryNotFoundError("404", response=Answer()), "neither a directory here nor a model on the"),
        (errors.RevisionNotFoundError("404", response=Answer()), "has no revision v2"),
        (errors.LocalEntryNotFoundError("offline"), "the hub cannot be reached; fetch it where there is a network"),
        (errors.OfflineModeIsEnabled("offline"), "could not be fetched from the Hugging Face hub"),
        (OSError("disk full"), "could not be fetched from the Hugging Face hub .disk full."),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_the_hub_cannot_give_is_said(asked, error, said):
    asked[1][0] = error
    with pytest.raises(Fault, match=f"^org/name: .*{said}"):
        base.config_of(base.Pretrained("org/name@v2"))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Fault, match=r"pip install 'jaxpost\[hf\]'"):
        hub.directory("org/name")


def test_urls_are_copied_here(tmp_path, monkeypatch):
    """memory:// stands for gs:// and s3://: another of fsspec's, read in the same way."""
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "cache"))
    families.write(tmp_path, SMALL, {})
    store = fsspec.filesystem("memory")
    store.pipe("/models/small/config.json", (tmp_path / "config.json").read_bytes())
    store.pipe("/models/small/model.safetensors", b"weights")
    store.pipe("/models/small/original/consolidated.00.pth", b"other weights")
    model = base.Pretrained("memory://models/small/")
    assert base.config_of(model) == SMALL
    assert sorted(path.name for path in base.directory(model).iterdir()) == ["config.json", "model.safetensors"]
    with_nothing_large = hub.directory(model.path, weights=False)
    assert [path.name for path in with_nothing_large.iterdir()] == ["config.json"]
    with pytest.raises(Fault, match="no file memory://models/none"):
        hub.directory("memory://models/none")


TOKENIZER = ("tokenizer.json", "merges.txt", "vocab.json", "tokenizer.model", "additional_chat_templates/tools.jinja")
OTHERS = (
    *("tf_model.h5", "pytorch_model.bin", "optimizer.pt", "model.bin", "consolidated.safetensors", "model.fp16.onnx"),
    *(
        "original/tokenizer.model",
        "onnx/model.safetensors",
        "checkpoint-5/model.safetensors",
        "checkpoint-5/config.json",
    ),
)


@pytest.mark.parametrize("weights", [("model.safetensors",), ("part-1.safetensors", "shards/part-2.safetensors")])
def test_of_a_url_only_what_a_model_is_read_from_is_fetched(tmp_path, monkeypatch, weights):
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    index = ["model.safetensors.index.json"] if len(weights) > 1 else []
    files = dict.fromkeys(("config.json", *TOKENIZER, *OTHERS, *weights), b"x")
    files |= {name: json.dumps({"weight_map": dict(enumerate(weights))}).encode() for name in index}
    url = f"memory://hub-{len(weights)}/m"
    for name, content in files.items():
        store.pipe(f"{url}/{name}", content)

    def fetched(**how):
        directory = hub.directory(url, **how)
        return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}

    assert fetched(weights=False) == {"config.json", *TOKENIZER, *index}
    assert fetched() == {"config.json", *TOKENIZER, *index, *weights}


def test_a_directory_on_the_web_cannot_be_listed():
    with pytest.raises(Fault, match="https://example.org/m: the web lists no files of a directory"):
        hub.directory("https://example.org/m")
