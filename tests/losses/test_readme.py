# SPDX-License-Identifier: Apache-2.0
"""The page about the losses: its code runs and trains, and its table names what there is."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxpost import losses

PAGE = Path(losses.__file__).with_name("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_code_of_the_page_trains():
    assert len(BLOCKS) == 4
    page: dict = {}
    exec(compile("".join(BLOCKS), "README.md", "exec"), page)
    for name in ("preference", "policy", "distilled"):
        values = np.asarray(page[f"{name}_values"])
        assert np.all(np.isfinite(values)) and values[-1] < values[0] - 0.01, name
    np.testing.assert_allclose(page["preference_values"][0], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(page["policy_values"][0], 0, atol=1e-5)  # advantages of a group add up to nothing
    assert jnp.all(page["start"]["embed"] != page["student"]["embed"])


def test_the_table_names_all_functions_and_no_others():
    named = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("## What there is") :]))
    exported = {name for name, thing in vars(losses).items() if getattr(thing, "__module__", "").startswith("jaxpost.")}
    assert named - {"alpha", "FAMILY"} <= exported, "the page names what is not there"
    assert exported <= named, "name it in the table of jaxpost/losses/README.md"
