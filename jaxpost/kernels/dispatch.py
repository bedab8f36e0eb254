# SPDX-License-Identifier: Apache-2.0
"""One fallback loop for every operation: the first implementation that can serve the input does."""

import contextvars
from collections.abc import Callable, Mapping
from typing import Any

from jaxpost.faults import Fault, nearest


class Unsupported(Exception):
    """Raised by an implementation for an input that it cannot serve; the message says why."""


_ASKED_FOR = contextvars.ContextVar("asked for by name", default=False)


def untried(what: str) -> None:
    """Raises `Unsupported` unless the implementation was asked for by name: for inputs that it compiles for, but with
    which its present form has not been run on its device. Who has run it there takes the call out."""
    if not _ASKED_FOR.get():
        raise Unsupported(f"{what} compiles, but has not been run on such a device; ask for it by name to try it")


def faster(operation: str, implementations: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """`dispatch` without the reference, for callers who have another way of their own: raises `Unsupported` where no
    other implementation serves the input."""
    rest = {name: each for name, each in implementations.items() if name != "reference"}
    return dispatch(operation, rest, None)


def dispatch(operation: str, implementations: Mapping[str, Callable[..., Any]], impl: str | None) -> Callable[..., Any]:
    """A function that tries the implementations in order; `impl` forces one. The last must serve every input."""
    if impl is not None:
        if impl not in implementations:
            raise Fault(f"{operation}: no implementation {impl!r}; {nearest(impl, implementations)}")

        def asked_for(*args: Any, **kwargs: Any) -> Any:
            before = _ASKED_FOR.set(True)
            try:
                return implementations[impl](*args, **kwargs)
            finally:
                _ASKED_FOR.reset(before)

        return asked_for

    def first(*args: Any, **kwargs: Any) -> Any:
        reasons = []
        for name, implementation in implementations.items():
            try:
                return implementation(*args, **kwargs)
            except Unsupported as why:
                reasons.append(f"{name}: {why}")
        raise Unsupported(f"{operation}: no implementation serves this input ({'; '.join(reasons)})")

    return first
