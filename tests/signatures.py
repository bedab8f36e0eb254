# SPDX-License-Identifier: Apache-2.0
"""The run-time check of types and array shapes in the package's signatures; `conftest.py` hooks it into imports."""

import typing
from collections.abc import Callable

from beartype import BeartypeConf, beartype

LENIENT = BeartypeConf(is_pep484_tower=True)  # an int is welcome where a float is asked for, as for type checkers


def check(function: Callable) -> Callable:
    """The function with its arguments and result checked, or itself where it must stay unchecked."""
    # Dataclasses are pytrees: JAX rebuilds them with placeholders, shapes, None and batched leaves in their fields.
    if function.__name__ == "__init__":
        return function
    for hint in getattr(function, "__annotations__", {}).values():
        _make_checkable(hint)
    return beartype(conf=LENIENT)(function)


def _make_checkable(hint: object) -> None:
    """Let isinstance accept every protocol inside a hint; beartype refuses the others while importing."""
    if isinstance(hint, type) and getattr(hint, "_is_protocol", False):
        typing.runtime_checkable(hint)
    for part in typing.get_args(hint):
        _make_checkable(part)
