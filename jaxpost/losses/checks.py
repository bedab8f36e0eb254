# SPDX-License-Identifier: Apache-2.0
"""Arguments of a loss that cannot be meant, refused while it is traced: shapes, names, ranges of plain numbers."""

from collections.abc import Container, Iterable
from typing import Any

from jaxpost.arrays import Array, Float, Int
from jaxpost.faults import Fault, nearest

Scalar = float | Array
"""A plain number, or an array without axes where it changes in the course of a run. Only plain ones are checked."""

Lengths = Float[Array, "*n"] | Int[Array, "*n"]
"""How many tokens each answer has, the end token included where it is learned; less than 1 counts as 1."""


def same_shape(loss: str, **arrays: Array | None) -> None:
    """All that are given have one shape: `[n]` against `[n, 1]` would broadcast to every pair of examples."""
    shapes = {name: tuple(x.shape) for name, x in arrays.items() if x is not None}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise Fault(f"{loss}: these must have one shape, but are {listed}")


def known(loss: str, argument: str, value: str, names: Iterable[str]) -> None:
    names = list(names)
    if value not in names:
        raise Fault(f"{loss}: no {argument} {value!r}; {nearest(value, names)}")


def positive(loss: str, **numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, int | float) and not value > 0:
            raise Fault(f"{loss}: {name} is {value:g}; it must be greater than 0")


def within(loss: str, argument: str, value: Any, low: float, high: float, open_at: Container[str] = ()) -> None:
    """`low <= value <= high`, without the bound where `open_at` holds "low" or "high"."""
    if not isinstance(value, int | float):
        return
    above = value > low if "low" in open_at else value >= low
    below = value < high if "high" in open_at else value <= high
    if not (above and below):
        ends = ("more than" if "low" in open_at else "at least", "less than" if "high" in open_at else "at most")
        raise Fault(f"{loss}: {argument} is {value:g}; it must be {ends[0]} {low:g} and {ends[1]} {high:g}")
