# SPDX-License-Identifier: Apache-2.0
"""The run-time check of types and array shapes in the package's signatures; `conftest.py` hooks it into imports."""

import collections.abc as abc
import types
import typing
from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.vale import IsInstance

LENIENT = BeartypeConf(is_pep484_tower=True)  # an int is welcome where a float is asked for, as for type checkers


def check(function: Callable) -> Callable:
    """The function with its arguments and result checked, or itself where it must stay unchecked.

    jaxtyping hands over copies made for checking: their annotations may be replaced, the package's own stay.
    """
    # Dataclasses are pytrees: JAX rebuilds them with placeholders, shapes, None and batched leaves in their fields.
    if function.__name__ == "__init__":
        return function
    function.__annotations__ = {name: checkable(hint) for name, hint in function.__annotations__.items()}
    return beartype(conf=LENIENT)(function)


def checkable(hint: typing.Any) -> typing.Any:
    """The hint without what a check must not do.

    beartype draws a random element of a sequence or mapping to look at its type. Ours are lazy (rows of a file, made
    when asked for): a draw costs time and may raise, on some runs. So abstract containers are checked, their elements
    are not. Protocols get what isinstance needs, else beartype refuses the import.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(checkable(part) for part in parts)]  # noqa: UP007 (the parts are not known here)
    if isinstance(origin, type) and origin.__module__ == "collections.abc" and issubclass(origin, abc.Collection):
        return origin
    if getattr(hint, "_is_protocol", False):
        return typing.runtime_checkable(hint)
    if isinstance(hint, type) and hasattr(hint, "__orig_bases__") and issubclass(hint, abc.Collection):
        return typing.Annotated[object, IsInstance[hint]]
    for part in parts:
        checkable(part)  # for the protocols among them
    return hint
