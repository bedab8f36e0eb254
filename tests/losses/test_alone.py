# SPDX-License-Identifier: Apache-2.0
"""The losses can be had without the rest."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import jaxpost.losses
print(*sorted(name for name in sys.modules if name.startswith("jaxpost")))
"""


def test_importing_the_losses_imports_no_other_room():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "jaxpost.losses.token" in loaded
    rooms = {name.split(".")[1] for name in loaded if "." in name}
    assert rooms <= {"losses", "arrays", "faults", "kernels"}
