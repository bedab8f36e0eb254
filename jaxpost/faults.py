# SPDX-License-Identifier: Apache-2.0
"""What a user did that cannot work, said in one sentence.

Every room raises `Fault` for bad input and nothing else for it; the command line prints its text and exits with
code 2. Any other exception that reaches a user is a bug of ours.
"""

import difflib
from collections.abc import Iterable


class Fault(ValueError):
    """Bad input. The message says what is wrong, where it is, and what to write instead."""


def nearest(name: str, names: Iterable[str], limit: int = 3) -> str:
    """A half sentence that offers the names closest to a mistyped one, or all of them when they are few."""
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if len(names) <= 12:
        return f"known: {', '.join(names) or 'none'}"
    return f"known: {', '.join(names[:12])}, ... ({len(names)} in all)"
