# SPDX-License-Identifier: Apache-2.0
"""One fallback loop for every operation: the first implementation that can serve the input does."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxpost.faults import Fault, nearest


class Unsupported(Exception):
    """Raised by an implementation for an input that it cannot serve; the message says why."""


def dispatch(operation: str, implementations: Mapping[str, Callable[..., Any]], impl: str | None) -> Callable[..., Any]:
    """A function that tries the implementations in order; `impl` forces one. The last must serve every input."""
    if impl is not None:
        if impl not in implementations:
            raise Fault(f"{operation}: no implementation {impl!r}; {nearest(impl, implementations)}")
        return implementations[impl]

    def first(*args: Any, **kwargs: Any) -> Any:
        reasons = []
        for name, implementation in implementations.items():
            try:
                return implementation(*args, **kwargs)
            except Unsupported as why:
                reasons.append(f"{name}: {why}")
        raise Unsupported(f"{operation}: no implementation serves this input ({'; '.join(reasons)})")

    return first
