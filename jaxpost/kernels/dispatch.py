# SPDX-License-Identifier: Apache-2.0
"""One fallback loop for every operation: the first implementation that can serve the input does."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxpost.faults import Fault, nearest


class Unsupported(Exception):
    """Raised by an implementation for an input that it cannot serve; the message says why."""


_ASKED_FOR = contextvars.ContextVar("asked for by name", default=False)


class _Forced(NamedTuple):
    names: tuple[tuple[str, str], ...] = ()
    interpreted: bool = False


_FORCED: Any = jax.make_user_context(_Forced())  # jit looks at it: what was traced outside is no program for inside


@contextlib.contextmanager
def forced(interpreted: bool = False, **names: str) -> Iterator[None]:
    """Programs traced inside have these operations served by the implementations of these names,
    `forced(attention="splash")`, as if each call had asked for it. Who has another way of its own (`faster`) still goes
    it where that one refuses. `interpreted` lets TPU kernels be named anywhere: they are run by Pallas' interpreter.
    """
    operations = sorted(path.parent.name for path in Path(__file__).parent.glob("*/reference.py"))
    for operation in names:
        if operation not in operations:
            raise Fault(f"no operation {operation!r}; {nearest(operation, operations)}")
    before: _Forced = _FORCED.value
    names = dict(before.names) | names
    with _FORCED(_Forced(tuple(sorted(names.items())), interpreted or before.interpreted)):
        yield


def interpreted() -> bool:
    """Whether kernels of the program being traced are interpreted, on whatever device."""
    return _FORCED.value.interpreted


def unasked(why: str) -> None:
    """Raises `Unsupported` for this reason unless the implementation was asked for by name: for inputs that it serves,
    but that something else serves better."""
    if not _ASKED_FOR.get():
        raise Unsupported(f"{why}; ask for it by name to have it")


def faster(operation: str, implementations: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """`dispatch` without the reference, for callers who have another way of their own: raises `Unsupported` where no
    other implementation serves the input. Where the operation is `forced`, the reference may be what is named."""
    if operation in dict(_FORCED.value.names):
        return dispatch(operation, implementations, None)
    rest = {name: each for name, each in implementations.items() if name != "reference"}
    return dispatch(operation, rest, None)


def serving(operation: str, implementations: Mapping[str, Callable[..., Any]], *args: Any, **kwargs: Any) -> str:
    """The name of the implementation that serves such an input, of which shapes suffice."""
    served = []

    def noting(name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = implementations[name](*args, **kwargs)
            served.append(name)
            return result

        return run

    watched = {name: noting(name) for name in implementations}
    jax.eval_shape(lambda *args: dispatch(operation, watched, None)(*args, **kwargs), *args)
    return served[-1]


def dispatch(operation: str, implementations: Mapping[str, Callable[..., Any]], impl: str | None) -> Callable[..., Any]:
    """A function that tries the implementations in order; `impl` forces one, and so does `forced` where the caller does
    not say. The last must serve every input."""
    impl = impl or dict(_FORCED.value.names).get(operation)
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
