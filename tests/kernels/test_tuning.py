# SPDX-License-Identifier: Apache-2.0
"""What was found best for a shape is used for that shape on that device, and nowhere else."""

import importlib
import json
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import pytest

from jaxpost.kernels import tuning
from jaxpost.kernels.decode_attention import Cached, decode_attention, empty
from jaxpost.kernels.dispatch import forced
from jaxpost.kernels.tuning import HERE, key, table, trying, tuned
from jaxpost.shard import MeshShape, make_mesh
from tests.conftest import ROOT


@dataclass(frozen=True)
class Blocks:
    rows: int = 8
    steps: int = 2


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "HERE", tmp_path)
    monkeypatch.setattr(tuning, "device_kind", lambda: "NVIDIA H200")
    path = table("matmul", "NVIDIA H200")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pallas_gpu": {"t=64 i=32": {"rows": 16}}}))
    assert path == tmp_path / "matmul" / "tuned" / "nvidia_h200.json"


def test_what_is_stored_for_a_shape_replaces_the_default(stored):
    assert tuned("matmul", "pallas_gpu", {"t": 64, "i": 32}, Blocks()) == Blocks(rows=16)


@pytest.mark.parametrize(
    "operation, implementation, sizes",
    [("matmul", "pallas_gpu", {"t": 64, "i": 33}), ("matmul", "other", {"t": 64, "i": 32}), ("conv", "pallas_gpu", {})],
)
def test_elsewhere_the_default_does(stored, operation, implementation, sizes):
    assert tuned(operation, implementation, sizes, Blocks()) == Blocks()


def test_another_device_has_another_table(stored, monkeypatch):
    monkeypatch.setattr(tuning, "device_kind", lambda: "TPU v5 lite")
    assert tuned("matmul", "pallas_gpu", {"t": 64, "i": 32}, Blocks()) == Blocks()


def test_values_on_trial_come_before_what_is_stored(stored):
    with trying("matmul", "pallas_gpu", {"steps": 5}) as trial:
        assert tuned("matmul", "pallas_gpu", {"t": 64, "i": 32}, Blocks()) == Blocks(steps=5)
        assert tuned("matmul", "other", {"t": 64, "i": 32}, Blocks()) == Blocks()
    assert trial.asked == {"t=64 i=32"}
    assert tuned("matmul", "pallas_gpu", {"t": 64, "i": 32}, Blocks()) == Blocks(rows=16)


def test_on_a_mesh_sizes_are_those_of_a_devices_own_pieces():
    """Four rows and two key/value heads, over two devices each."""
    q, kv, none = jnp.ones((4, 1, 4, 64)), jnp.ones((4, 1, 2, 64)), jnp.zeros(4, jnp.int32)
    cached = Cached.of(empty("model", (1, 4, 2, 128, 64), jnp.float32), none, none)
    mesh = make_mesh(MeshShape(fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh), forced(interpreted=True, decode_attention="pallas_tpu"):
        with trying("decode_attention", "pallas_tpu", {}) as trial:
            jax.make_jaxpr(decode_attention)(q, kv, kv, cached)
    assert "b=2 k=1 t=128 h=64 kv=float32" in trial.asked


TUNABLES = {
    ("attention", "splash"): "splash.Blocks",
    ("attention", "pallas_gpu"): "hopper.Tiles",
    ("decode_attention", "pallas_gpu"): "pallas_gpu.Tiling",
    ("decode_attention", "pallas_tpu"): "pallas_tpu.Tiling",
    ("lowrank_matmul", "pallas_gpu"): "hopper.Tiles",
    ("lowrank_matmul", "pallas_tpu"): "pallas_tpu.Blocks",
    ("quant_matmul", "pallas_gpu"): "pallas_gpu.Tunables",
}


def tunable(operation, implementation) -> set[str]:
    module, _, name = TUNABLES[operation, implementation].partition(".")
    return {f.name for f in fields(getattr(importlib.import_module(f"jaxpost.kernels.{operation}.{module}"), name))}


def test_the_tables_that_ship_hold_what_their_kernels_understand():
    found = 0
    for path in HERE.glob("*/tuned/*.json"):
        for implementation, shapes in json.loads(path.read_text()).items():
            names = tunable(path.parent.parent.name, implementation)
            for name, values in shapes.items():
                assert set(values) <= names and name == key(dict(part.split("=") for part in name.split()))
                found += 1
    assert found


@pytest.mark.parametrize("which", TUNABLES, ids=" ".join)
def test_what_is_searched_is_what_there_is_to_tune(monkeypatch, which):
    if TUNABLES[which].startswith("hopper") and jax.__version_info__ < (0, 11):
        pytest.skip("pallas_gpu: its tunables stand beside a kernel that needs jax 0.11")
    monkeypatch.syspath_prepend(ROOT / "tools")
    grids = importlib.import_module("kernel_cases").GRIDS
    assert set(grids) == set(TUNABLES)
    assert grids[which] and set(grids[which]) <= tunable(*which)
