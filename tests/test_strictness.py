# SPDX-License-Identifier: Apache-2.0
"""What `conftest.py` and pyproject.toml promise about the room in which tests run."""

import inspect
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from jax.experimental.compilation_cache import compilation_cache

PROBE = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
from jaxtyping import Array, Float


class Named(Protocol):
    name: str


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pair:
    a: Float[Array, "n m"]
    b: Float[Array, "m k"]


def product(x: Float[Array, "n m"], y: Float[Array, "m k"]) -> Float[Array, "n k"]:
    return x @ y


def rate(value: float) -> float:
    return value


def name(thing: Named | None) -> str:
    return thing.name if thing else ""


def names(things: tuple[Named, ...]) -> list[str]:
    return [thing.name for thing in things]


class Lazy(Sequence[int]):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise IndexError("read without need")


def same(rows: Lazy) -> Lazy:
    return rows


def length(rows: Sequence[int] | None) -> int:
    return len(rows or ())
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A module whose signatures are checked as the package's are."""
    (tmp_path / "signature_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    with jaxtyping.install_import_hook("signature_probe", "tests.signatures.check"):
        yield import_module("signature_probe")
    del sys.modules["signature_probe"]


def test_eight_cpu_devices():
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8


def test_rank_promotion_raises():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_warning_is_an_error():
    with pytest.raises(DeprecationWarning):
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_package_is_imported_through_the_hook():
    from jaxpost.faults import nearest

    assert inspect.unwrap(nearest) is not nearest


def test_wrong_shape_is_an_error(probe):
    assert probe.product(jnp.ones((2, 3)), jnp.ones((3, 4))).shape == (2, 4)
    with pytest.raises(jaxtyping.TypeCheckError):
        probe.product(jnp.ones((2, 3)), jnp.ones((2, 4)))


def test_wrong_type_is_an_error_and_int_is_a_float(probe):
    assert probe.rate(1) == 1
    with pytest.raises(jaxtyping.TypeCheckError):
        probe.rate("1")


def test_protocol_without_decorator_is_checked(probe):
    assert probe.name(None) == "" and probe.name(Path("a/b")) == "b" and probe.names((Path("a/b"),)) == ["b"]
    with pytest.raises(jaxtyping.TypeCheckError):
        probe.name(object())
    with pytest.raises(jaxtyping.TypeCheckError):
        probe.names((object(),))


def test_lazy_sequence_is_checked_but_not_read(probe):
    assert probe.same(probe.Lazy()) and probe.length(probe.Lazy()) == 3
    for function in (probe.same, probe.length):
        with pytest.raises(jaxtyping.TypeCheckError):
            function(3)


def test_annotations_stay_as_written(probe):
    assert inspect.signature(probe.length).parameters["rows"].annotation == Sequence[int] | None
    assert inspect.unwrap(probe.length).__annotations__["rows"] == Sequence[int] | None


def test_pytree_dataclass_holds_anything(probe):
    pair = probe.Pair(jnp.ones((2, 3)), jnp.ones((3, 4)))
    assert jax.tree.map(lambda leaf: leaf.shape, pair).a == (2, 3)
    assert jax.vmap(lambda p: probe.product(p.a, p.b))(jax.tree.map(lambda x: x[None], pair)).shape == (1, 2, 4)


@pytest.fixture
def cache(tmp_path):
    """An empty compilation cache that takes every program."""
    options = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_cached(cache):
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
    assert any(cache.glob("*-cache"))


def test_uncached_compiles_afresh(cache, uncached):
    jax.jit(lambda x: jnp.cos(x) @ x)(jnp.ones((3, 3)))
    assert not any(cache.glob("*-cache"))
