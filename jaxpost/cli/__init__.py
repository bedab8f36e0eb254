# SPDX-License-Identifier: Apache-2.0
"""The command line: `jaxpost VERB ...`. What a verb makes goes to standard output, what it does meanwhile to standard
error; `train`, which is watched, says everything on standard output."""

from jaxpost.cli.program import VERBS, main, surroundings

__all__ = ["VERBS", "main", "surroundings"]
