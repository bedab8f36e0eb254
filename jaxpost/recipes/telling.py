# SPDX-License-Identifier: Apache-2.0
"""Where a run speaks: the terminal of the first process."""

from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console

from jaxpost.train.progress import status


def console() -> Console:
    return Console(quiet=jax.process_index() > 0)


def say(text: str) -> None:
    """A sentence as it is: commands and paths must not be broken in two."""
    console().print(text, highlight=False, markup=False, soft_wrap=True)


def reading(act: Callable[[], Any], what: str) -> Any:
    """Something that may take a while, with a word about it."""
    with status(what, console()):
        return act()
