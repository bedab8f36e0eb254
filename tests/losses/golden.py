# SPDX-License-Identifier: Apache-2.0
"""Golden numbers of losses against ours: all cases of a table in one compiled program, compared one by one."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FOLDER = Path(__file__).parent.parent / "golden" / "losses"
Case = Callable[[SimpleNamespace, Mapping[str, Any]], Mapping[str, Any]]
"""From the inputs and the case's own numbers (weights) to what must equal them."""


@cache
def read(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The inputs and the cases by name; null is NaN."""
    file = json.loads((FOLDER / name).read_text())
    inputs = {key: array(x) if isinstance(x, list) else x for key, x in file["inputs"].items()}
    cases = [{key: x if key == "name" else array(x) for key, x in case.items()} for case in file["cases"]]
    return inputs, {case["name"]: case for case in cases}


def array(x: Any) -> np.ndarray:
    numbers = np.array(x, dtype=object)
    numbers[numbers == None] = np.nan  # noqa: E711 (of each element)
    return numbers.astype(np.float64)


def ours(name: str, table: Mapping[str, Case]) -> dict[str, dict[str, np.ndarray]]:
    inputs, cases = read(name)
    arrays = {key: jnp.asarray(x, jnp.float32) for key, x in inputs.items() if isinstance(x, np.ndarray)}
    given = {key: {k: jnp.asarray(x, jnp.float32) for k, x in cases[key].items() if k != "name"} for key in table}

    def run(arrays: dict, given: dict) -> dict:
        found = SimpleNamespace(**arrays)
        return {key: dict(case(found, given[key])) for key, case in table.items()}

    return jax.tree.map(np.asarray, jax.jit(run)(arrays, given))


def compare(wanted: Mapping[str, Any], found: Mapping[str, np.ndarray], tolerance: float = 1e-5) -> list[str]:
    """Which numbers were compared; each must be within the tolerance, of itself where it is above 1."""
    assert found, "nothing to compare"
    for key, x in found.items():
        np.testing.assert_allclose(x, wanted[key], rtol=tolerance, atol=tolerance, err_msg=f"{wanted['name']}: {key}")
    return sorted(found)
