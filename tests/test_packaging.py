# SPDX-License-Identifier: Apache-2.0
"""What an install of jaxpost brings along, and that pyproject.toml gives its reasons."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import jaxpost

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
PROJECT = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
DISTRIBUTIONS_LIMIT = 80


def closure(requirements: list[Requirement]) -> set[str]:
    """Names of the distributions that these requirements bring into this environment, extras and markers heeded."""
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in requires(name) or ()]
    return {name for name, _ in seen}


def test_closure_heeds_extras_and_markers():
    plain = closure([Requirement("etils")])
    assert plain == {"etils"}
    assert plain < closure([Requirement("etils[epath]")])
    assert closure([Requirement("etils; python_version < '3'")]) == set()


def test_base_install_stays_small():
    names = closure(BASE) | {"jaxpost"}
    assert {"jax", "jaxlib", "pyarrow", "numpy"} < names
    assert len(names) < DISTRIBUTIONS_LIMIT, sorted(names)
    assert not names & {"torch", "tensorflow", "libtpu", "transformers"}
    assert not any(name.startswith(("nvidia-", "jax-cuda")) for name in names)


@pytest.mark.parametrize("requirement", BASE, ids=lambda requirement: requirement.name)
def test_dependency_has_a_reason_and_a_bound(requirement):
    (line,) = (line for line in PYPROJECT.read_text().splitlines() if line.startswith(f'    "{requirement}"'))
    assert re.search(r'", +# \w+', line), f"{requirement.name} lacks its reason"
    (bound,) = requirement.specifier
    assert bound.operator == ">=", "a library leaves the upper end open"
    assert Version(version(requirement.name)) >= Version(bound.version)


def test_version_is_said_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxpost.__version__)
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert f"[{jaxpost.__version__}]" in (PYPROJECT.parent / "CHANGELOG.md").read_text(encoding="utf-8")


def test_installed_metadata_agrees():
    try:
        installed = distribution("jaxpost")
    except PackageNotFoundError:
        pytest.skip("jaxpost is not installed here: run launch/test.sh to check its metadata too")
    assert installed.version == jaxpost.__version__
    (script,) = installed.entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("jaxpost", "jaxpost.cli:main")
    assert {r.name for r in map(Requirement, installed.requires or ()) if "extra" not in str(r.marker)} == {
        requirement.name for requirement in BASE
    }
