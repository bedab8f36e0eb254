# SPDX-License-Identifier: Apache-2.0
"""The house rules of the package: who may import whom, no nameless rooms, no overgrown files.

The rules are tried out on small offending trees as well, so that a rule which stopped biting is noticed.
"""

import re
from pathlib import Path

import pytest

from tools.imports import ROOT, graph, imports, target_room

PACKAGE = Path(__file__).parent.parent / "jaxpost"

# A room imports only rooms to its left; rooms between two signs do not import each other.
ORDER = (
    "faults < arrays < trees < params < quant, shard < kernels < delta < models < interop, sample"
    " < train < evals < recipes < cli < __main__"
)
SIDE = {"losses": {"faults", "arrays", "kernels"}, "data": {"faults", "arrays"}}
SIDE_OPEN_FROM = "models"  # this room and all to its right may import the side rooms
DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}  # `data` runs on the host, without them

NAMELESS = re.compile(r"(.*_)?(utils?|commons?|helpers?|misc)")
FILE_BUDGET, KERNEL_BUDGET = 400, 700
OVER_BUDGET = re.compile(r"^# Over budget: \w+", re.MULTILINE)


def allowed_edges() -> dict[str, set[str]]:
    allowed: dict[str, set[str]] = {ROOT: set()} | SIDE
    left: set[str] = set()
    for group in ORDER.split(" < "):
        rooms = set(group.split(", "))
        if SIDE_OPEN_FROM in rooms:
            left |= SIDE.keys()
        allowed |= {room: set(left) for room in rooms}
        left |= rooms
    return allowed


ALLOWED = allowed_edges()


def layering_faults(package: Path) -> list[str]:
    faults = [f"{room}: no such room in the import order" for room in sorted(graph(package)) if room not in ALLOWED]
    for file, line, room, target in imports(package):
        where = f"{file.relative_to(package.parent)}:{line}"
        if room == "data" and target.partition(".")[0] in DEVICE_LIBRARIES:
            faults.append(f"{where}: data imports {target}")
        imported = target_room(package, target)
        if imported not in (None, ROOT, room) and imported not in ALLOWED.get(room, set()):
            faults.append(f"{where}: {room or '__init__'} imports {target}")
    return faults


def naming_faults(package: Path) -> list[str]:
    names = {parent for file in package.rglob("*.py") for parent in (file, *file.parents) if package in parent.parents}
    return [f"{path.relative_to(package.parent)}: name what it is for" for path in sorted(names) if nameless(path.stem)]


def nameless(stem: str) -> bool:
    return bool(NAMELESS.fullmatch(stem.strip("_")))


def size_faults(package: Path) -> list[str]:
    faults = []
    for file in sorted(package.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        budget = KERNEL_BUDGET if (package / "kernels") in file.parents else FILE_BUDGET
        if (lines := len(source.splitlines())) > budget and not OVER_BUDGET.search(source):
            faults.append(f"{file.relative_to(package.parent)}: {lines} lines, over {budget} without a reason")
    return faults


@pytest.mark.parametrize("rule", [layering_faults, naming_faults, size_faults])
def test_package_keeps_the_rule(rule):
    assert len(list(PACKAGE.rglob("*.py"))) > 5
    assert rule(PACKAGE) == []


@pytest.fixture
def package(tmp_path):
    """A package with one empty file in every room, which keeps every rule; `write` adds a file to it."""
    root = tmp_path / "jaxpost"

    def write(name: str, source: str) -> Path:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
        return root

    for room in ALLOWED:
        write(f"{room}/__init__.py" if room else "__init__.py", "")
    return write


@pytest.mark.parametrize(
    "name, source",
    [
        ("trees.py", "from jaxpost.arrays import Tree"),
        ("models/decoder.py", "from jaxpost import losses, __version__\nimport jaxpost.data.text"),
        ("models/decoder.py", "from .layers import norm\nfrom . import heads\nfrom .. import delta"),
        ("losses/token.py", "from ..kernels.linear_xent import api\nimport jax"),
        ("data/text.py", "import numpy\nimport jaxtyping"),
        ("recipes/sft.py", "def f():\n    import jaxpost.train.loop"),
    ],
)
def test_permitted_imports_pass(package, name, source):
    assert layering_faults(package(name, source)) == []


@pytest.mark.parametrize(
    "name, source, fault",
    [
        ("arrays.py", "import jaxpost.trees", "arrays.py:1: arrays imports jaxpost.trees"),
        ("models/decoder.py", "\nfrom jaxpost.train.loop import run", "models/decoder.py:2: models imports"),
        ("models/decoder.py", "from jaxpost import evals", "models imports jaxpost.evals"),
        ("models/decoder.py", "def f():\n    from jaxpost.cli import main", "models/decoder.py:2: models imports"),
        ("models/deep/decoder.py", "from ...train import loop", "models imports jaxpost.train.loop"),
        ("models/decoder.py", "from .. import recipes", "models imports jaxpost.recipes"),
        ("train/loop.py", "import importlib\nimportlib.import_module('jaxpost.cli')", "loop.py:2: train imports"),
        ("train/loop.py", "if TYPE_CHECKING:\n    import jaxpost.evals", "train imports jaxpost.evals"),
        ("quant/int8.py", "import jaxpost.shard.mesh", "quant imports jaxpost.shard.mesh"),
        ("losses/token.py", "import jaxpost.models", "losses imports jaxpost.models"),
        ("delta/bind.py", "import jaxpost.losses", "delta imports jaxpost.losses"),
        ("data/text.py", "import jaxpost.trees", "data imports jaxpost.trees"),
        ("data/text.py", "def f():\n    import jax.numpy as jnp", "data imports jax.numpy"),
        ("__init__.py", "from jaxpost.losses import token", "__init__ imports jaxpost.losses.token"),
        ("zoo/__init__.py", "", "zoo: no such room"),
        ("zoo.py", "", "zoo: no such room"),
    ],
)
def test_forbidden_import_is_found(package, name, source, fault):
    (found,) = layering_faults(package(name, source))
    assert fault in found


@pytest.mark.parametrize("name", ["data/utils.py", "train/common/loop.py", "data/_helpers.py", "data/text_utils.py"])
def test_nameless_file_is_found(package, name):
    assert len(naming_faults(package(name, ""))) == 1


def test_a_word_inside_a_name_is_no_fault(package):
    assert naming_faults(package("data/common_sense.py", "")) == []


@pytest.mark.parametrize(
    "name, lines, head, faults",
    [
        ("data/text.py", 400, "", 0),
        ("data/text.py", 401, "", 1),
        ("data/text.py", 401, "# Over budget: one table of constants.", 0),
        ("data/text.py", 401, "# Over budget:", 1),
        ("kernels/attention/pallas_tpu.py", 700, "", 0),
        ("kernels/attention/pallas_tpu.py", 701, "", 1),
    ],
)
def test_overgrown_file_is_found(package, name, lines, head, faults):
    assert len(size_faults(package(name, head + "\n" * lines))) == faults
