# SPDX-License-Identifier: Apache-2.0
"""How hard the laws are tried. `LAWS=search` looks further, with another seed each time."""

import os

from hypothesis import HealthCheck, Phase, settings

COMMON = dict(
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],
)

settings.register_profile("laws", max_examples=15, derandomize=True, **COMMON)
settings.register_profile("search", max_examples=400, print_blob=True, **COMMON)
settings.load_profile(os.environ.get("LAWS", "laws"))
